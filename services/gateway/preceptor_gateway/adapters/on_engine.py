"""The adapters of one engine: what it should hold, what is ready there, and how the two are brought together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

import structlog
from preceptor_contracts.errors import ManifestInvalid, PreceptorError
from preceptor_contracts.manifest import Manifest
from preceptor_contracts.wire import AdapterOnEngine, AdapterState

from preceptor_gateway.adapters.board import Board, Cause
from preceptor_gateway.adapters.canary import CanaryFailed, check_canary
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.adapters.verification import Verifier
from preceptor_gateway.engine import EnginePool, PooledEngine, Routing
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest, EngineTimeout, GatewayError, Unavailable
from preceptor_gateway.store import AliasStore

log = structlog.get_logger("adapters")

FOLDER_GONE = "Its folder is gone."
_SILENT_LOOKS = 2
"""Looks in a row without an answer before a silent engine is taken out; one may be a busy moment."""


class AdaptersOnEngine:
    """One engine's share of the reconciler's work. Nothing here waits for another engine."""

    def __init__(
        self,
        engine: PooledEngine,
        pool: EnginePool,
        registry: Registry,
        verifier: Verifier,
        store: AliasStore,
        metrics: Metrics,
    ) -> None:
        self.engine = engine
        self._client = engine.client
        self._pool = pool
        self._registry = registry
        self._verifier = verifier
        self._store = store
        self._board = Board(engine, pool, metrics)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._owed: set[str] = set()
        """Adapters that were to be unloaded while the engine could not be asked."""
        self._on_disk: Mapping[str, int] = {}
        self._served: frozenset[str] = frozenset()
        self._silent_looks = 0
        self.was_away = False
        """It did not answer, and its adapters were not looked at since."""

    # --- memory only ---

    def manifest(self, adapter: str) -> Manifest | None:
        """The manifest of an adapter that can be asked here now."""
        return self._board[adapter].manifest if adapter in self.engine.ready and not self.engine.is_out else None

    def view(self, adapter: str) -> AdapterOnEngine:
        """Where an adapter stands here."""
        status = self._board[adapter]
        if self.engine.is_out and status.state is not AdapterState.FAILED:
            why = "A training has the engine's GPU." if self.engine.makes_way else "The engine does not answer."
            return AdapterOnEngine(state=AdapterState.REGISTERED, reason=why)
        return AdapterOnEngine(state=status.state, reason=status.reason)

    def lost(self, adapter: str) -> None:
        """Notes that the engine answered that it does not know an adapter."""
        if adapter in self.engine.ready:
            self._board.set(adapter, AdapterState.REGISTERED, "The engine lost it.")
        self.engine.nudge.set()

    # --- one adapter ---

    async def make_ready(self, name: str) -> None:
        """Verifies, loads and probes an adapter unless it is ready.

        Raises:
            PreceptorError: Why it cannot be served; its state is `failed` then, or `registered` where another try
                may help.
        """
        async with self._locks[name]:
            await self._make_ready(name)

    async def drop(self, name: str) -> None:
        """Takes an adapter out of the engine; one that cannot be asked now is asked when it is back."""
        self._board.set(name, AdapterState.REGISTERED, "")
        self._owed.add(name)
        if not self.engine.is_out:
            async with self._locks[name]:
                await self._pay(name)

    async def _pay(self, name: str) -> None:
        """Unloads what is to be unloaded; the caller holds the lock, so no load is under way."""
        if name not in self._owed:
            return
        if self._board[name].is_ready:
            self._board.set(name, AdapterState.REGISTERED, "")
        try:
            await self._client.unload(name)
        except GatewayError as error:
            log.warning("not unloaded yet", adapter=name, engine=self.engine.name, reason=error.message)
        else:
            self._owed.discard(name)

    async def _make_ready(self, name: str) -> None:
        before = self._board[name]
        self._owed.discard(name)
        if before.is_ready:
            return
        self._board.set(name, AdapterState.LOADING, before.reason)
        stamp = 0
        try:
            stamp = await asyncio.to_thread(self._registry.stamp, name)
            adapter = await self._verifier.verified(name)
            await self._client.load(name, str(adapter.path))
            await check_canary(self._client, adapter.manifest)
        except ManifestInvalid as error:
            self._fail(name, Cause.MANIFEST, error.message, stamp)
            raise
        except (BadRequest, CanaryFailed) as error:
            self._fail(name, Cause.ENGINE, error.message, stamp, probed=isinstance(error, CanaryFailed))
            raise
        except BaseException as error:
            # Whatever else happened, an end of the gateway included: nobody may find it loading for ever.
            self._board.interrupted(name, _why_interrupted(error))
            if isinstance(error, Unavailable) and error.code == "engine_down":
                self._pool.failed(self._client)
            raise
        self._board.ready(name, adapter.manifest, stamp)
        log.info("adapter ready", adapter=name, engine=self.engine.name)

    def _fail(self, name: str, cause: Cause, reason: str, stamp: int, *, probed: bool = False) -> None:
        self._board.fail(name, cause, reason, stamp=stamp, probed=probed)
        log.warning("adapter failed", adapter=name, engine=self.engine.name, reason=reason)

    # --- the reconciler's part ---

    async def look(self) -> None:
        """Compares what the engine serves with what was ready, and puts it in or out of routing. Loads nothing.

        Raises:
            GatewayError: The engine does not answer.
        """
        try:
            self._on_disk = await asyncio.to_thread(self._registry.stamps)
        except OSError as error:
            # What it held at the last look holds: an engine answers without that disk.
            log.warning("the adapters folder cannot be read", reason=str(error))
        # Taken before asking: what becomes ready while the answer travels is not in it.
        ready_before = tuple(self.engine.ready)
        try:
            self._served = await self._client.names()
        except GatewayError as error:
            self._unanswered(error)
            raise
        self._silent_looks = 0
        lost = [name for name in ready_before if name not in self._served and name in self.engine.ready]
        for name in lost:
            self._board.set(name, AdapterState.REGISTERED, "The engine lost it.")
        if lost or self.was_away:
            # It may be another engine now, with another tokenizer.
            self._client.forget()
        was_out = self.engine.routing is Routing.OUT
        self._pool.bring_in(self.engine)
        if was_out:
            self._board.engine_came()

    def _unanswered(self, error: GatewayError) -> None:
        self._silent_looks += 1
        if isinstance(error, EngineTimeout) and self._silent_looks < _SILENT_LOOKS:
            return
        if not self.was_away:
            log.warning("engine is away", engine=self.engine.name, reason=error.message)
        self.was_away = True
        self._pool.take_out(self.engine)
        self.engine.is_settled = False
        self._board.engine_went()

    async def settle(self) -> None:
        """Loads what is wanted and not there, and unloads what must not be there any more."""
        wanted = self._store.wanted()
        self._board.show_registered(self._on_disk)
        for name in sorted({*self._board.names(), *wanted}):
            if self._is_gone(name):
                await self._unload_gone(name)
            elif name not in wanted and name not in self._on_disk and not self._locks[name].locked():
                self._board.forget(name)
        for name in sorted(self._owed):
            async with self._locks[name]:
                await self._pay(name)
        for name in sorted(self._store.wanted()):
            self._heal(name)
            if self._board[name].state is AdapterState.REGISTERED:
                await self._try(name)
        self.engine.is_settled = True
        self.was_away = False

    def _is_gone(self, name: str) -> bool:
        status = self._board[name]
        if status.is_ready:
            # Other weights under an old name: folders are immutable, so it counts as another adapter.
            return self._on_disk.get(name, 0) != status.stamp
        return name in self._store.wanted() and name not in self._on_disk and status.cause is not Cause.FOLDER

    async def _unload_gone(self, name: str) -> None:
        """Unloads an adapter without a folder, a promoted one too.

        vLLM reads an adapter from its folder again after it fell out of memory (`max_cpu_loras`), in the middle of a
        step for all requests; where the folder is gone then, that ends the whole engine. One clear refusal is better.
        """
        async with self._locks[name]:
            # The look may be older than what was loaded since.
            stamp, status = await asyncio.to_thread(self._registry.stamp, name), self._board[name]
            if stamp and (not status.is_ready or stamp == status.stamp):
                return
            if stamp:
                self._board.set(name, AdapterState.REGISTERED, "Its manifest changed.")
            else:
                self._fail(name, Cause.FOLDER, FOLDER_GONE, stamp)
            self._owed.add(name)
            await self._pay(name)

    def _heal(self, name: str) -> None:
        """Gives a failed adapter another try where what made it fail has changed."""
        status, stamp = self._board[name], self._on_disk.get(name, 0)
        if status.state is not AdapterState.FAILED or not stamp:
            return
        if (
            status.cause is Cause.FOLDER
            or (status.cause is Cause.MANIFEST and stamp != status.stamp)
            # A refused load leaves no name behind, a failed canary does; its absence means a new engine.
            or (status.cause is Cause.ENGINE and status.probed and name not in self._served)
        ):
            self._board.set(name, AdapterState.REGISTERED, status.reason)

    async def _try(self, name: str) -> None:
        async with self._locks[name]:
            if name not in self._store.wanted() or name not in self._on_disk:
                return
            try:
                await self._make_ready(name)
            except Exception as error:
                # The edge of the worker loop: one bad adapter must not keep the others out.
                why = {"reason": str(error), "kind": type(error).__name__}
                log.warning("not reconciled", adapter=name, engine=self.engine.name, **why)


def _why_interrupted(error: BaseException) -> str:
    if isinstance(error, PreceptorError):
        return error.message
    return "Loading was interrupted." if isinstance(error, asyncio.CancelledError) else f"Loading broke off: {error!r}."
