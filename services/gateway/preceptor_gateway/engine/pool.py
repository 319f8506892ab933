"""Several engines behind one gateway: which are in routing, and which one a request goes to. Touches memory only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

import structlog

from preceptor_gateway.engine.client import EngineClient
from preceptor_gateway.engine_urls import short_name
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import Unavailable

log = structlog.get_logger("engines")

SLACK = 4
"""Requests that an engine may have in flight above the least loaded one before its prefix cache is not worth it."""
RATIO = 1.5
"""And so many times as many: eight more do not matter where each engine has a hundred."""
RETRY_AFTER_S = 5
HANDED_OFF_RETRY_S = 30
"""A training takes minutes at least."""


class Routing(StrEnum):
    """Whether requests go to an engine."""

    UNKNOWN = "unknown"
    """Not looked at since the gateway started; asked where no other can be."""
    IN = "in"
    OUT = "out"
    """It did not answer. The reconciler brings it back."""


@dataclass(eq=False)
class PooledEngine:
    """One engine as the pool sees it."""

    client: EngineClient
    name: str
    routing: Routing = Routing.UNKNOWN
    is_settled: bool = False
    """Every wanted adapter was tried since it came (back); until then others are preferred for the base model."""
    ready: set[str] = field(default_factory=set)
    """Adapters whose canary passed there."""
    makes_way: bool = False
    """A training wants its GPU, or has it: no request goes to it, whether it answers or not."""
    picked: int = 0
    """The pool's count of requests when it was last picked, so that engines that are alike take turns."""
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    """Asks the reconciler to look at once."""

    @property
    def is_out(self) -> bool:
        """True where no request goes to it."""
        return self.routing is Routing.OUT or self.makes_way

    def score(self, prefix: bytes) -> bytes:
        """Rendezvous hashing: the engine with the highest score is the prefix's home, in every gateway alike."""
        return blake2b(prefix, digest_size=8, key=self.name.encode()[:64]).digest()


class EnginePool:
    """Picks an engine for each request.

    The rule: of the engines that can answer (in routing, and the adapter ready there), the home of the request's
    prefix, found by rendezvous hashing, so that its prefix cache is used and an engine that leaves moves only its own
    share. But where the home has `SLACK` requests more in flight than the least loaded one, and `RATIO` times as many,
    the least loaded one is taken.
    """

    def __init__(self, clients: Sequence[EngineClient], metrics: Metrics) -> None:
        self.engines = tuple(PooledEngine(client, short_name(client.url)) for client in clients)
        self._by_client = {id(one.client): one for one in self.engines}
        self._metrics = metrics
        self._requests = 0
        for one in self.engines:
            metrics.engine_up.labels(one.name).set(0)

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(*(one.client.close() for one in self.engines))

    # --- hot path: memory only ---

    def pick(self, adapter: str | None, affinity: bytes = b"") -> EngineClient:
        """Picks whom to ask.

        Args:
            adapter: What must be ready there; None for the base model.
            affinity: What requests on one prefix have in common; empty where that does not matter.

        Raises:
            Unavailable: No engine can answer now.
        """
        able = self._able(adapter)
        if len(able) > 1:
            one = self._choose(able, adapter, affinity)
        elif able:
            one = able[0]
        else:
            raise self.nobody(adapter)
        self._requests += 1
        one.picked = self._requests
        return one.client

    def has_ready(self, adapter: str) -> bool:
        """True where an engine in routing has the adapter ready."""
        return any(adapter in one.ready and not one.is_out for one in self.engines)

    def nobody(self, adapter: str | None) -> Unavailable:
        """What to raise where no engine can answer."""
        if adapter is None or all(one.is_out for one in self.engines):
            many = len(self.engines) > 1
            if any(one.makes_way for one in self.engines):
                return Unavailable(
                    "A training has the engine's GPU.",
                    code="engine_handed_off",
                    hint="It comes back when the training ends; try again. GET /health tells.",
                    retry_after_s=HANDED_OFF_RETRY_S,
                )
            return Unavailable(
                f"None of the {len(self.engines)} engines answers." if many else "The engine does not answer.",
                code="engine_down",
                hint="It may be starting; try again. GET /health tells when it is back.",
                retry_after_s=RETRY_AFTER_S,
            )
        return Unavailable(f"{adapter!r} is being loaded.", code="adapter_loading", hint="Try again.", retry_after_s=2)

    def failed(self, client: EngineClient) -> None:
        """Takes an engine that broke a connection off before any byte out of routing, and has it looked at at once."""
        one = self.of(client)
        if not one.is_out:
            log.warning("engine taken out", engine=one.name, reason="a request met no answer")
        self.take_out(one)
        one.nudge.set()

    def elsewhere(self, client: EngineClient, adapter: str | None, affinity: bytes = b"") -> EngineClient | None:
        """Notes that an engine failed a request before any byte, and names another one for the one retry, if any."""
        self.failed(client)
        try:
            return self.pick(adapter, affinity)
        except Unavailable:
            return None

    # --- control path ---

    def of(self, client: EngineClient) -> PooledEngine:
        """The pool's entry of a client."""
        return self._by_client[id(client)]

    def take_out(self, one: PooledEngine) -> None:
        """Sends it no more requests; those in flight go on."""
        one.routing = Routing.OUT
        self._metrics.engine_up.labels(one.name).set(0)

    def make_way(self, one: PooledEngine, *, wanted: bool) -> None:
        """Sends it no more requests while a training wants its GPU; those in flight go on."""
        if one.makes_way != wanted:
            log.info("engine makes way for a training" if wanted else "engine may come back", engine=one.name)
        one.makes_way = wanted
        one.nudge.set()

    def bring_in(self, one: PooledEngine) -> None:
        """Sends it requests, for the adapters that are ready there and for the base model."""
        if one.routing is Routing.OUT:
            log.info("engine is back", engine=one.name)
        one.routing = Routing.IN
        self._metrics.engine_up.labels(one.name).set(1)

    def _able(self, adapter: str | None) -> list[PooledEngine]:
        if adapter is not None:
            return [one for one in self.engines if adapter in one.ready and not one.is_out]
        there = [one for one in self.engines if not one.is_out]
        up = [one for one in there if one.routing is Routing.IN]
        return [one for one in up if one.is_settled] or up or there

    def _choose(self, able: list[PooledEngine], adapter: str | None, affinity: bytes) -> PooledEngine:
        least = min(able, key=lambda one: (one.client.in_flight, one.picked))
        if not affinity:
            return least
        # Hashed once, however long it is; then a few bytes per engine.
        prefix = blake2b(b"%s\0%s" % ((adapter or "").encode(), affinity), digest_size=16).digest()
        home = max(able, key=lambda one: one.score(prefix))
        load, lowest = home.client.in_flight, least.client.in_flight
        return least if load >= lowest + SLACK and load >= lowest * RATIO else home
