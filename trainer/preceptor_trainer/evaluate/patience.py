"""What an exam does while the gateway is away: it waits, says so, and ends in time with all answers kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.served_names import parse_served_name
from preceptor_contracts.wire import AdapterState, Health

from preceptor_trainer.gateway import Gateway, GatewayBusy, GatewayDown, GatewayFailure

PAUSE_S = 2.0
"""Between two looks at a gateway that is away."""
_RELOADS = 2
"""Times that an adapter is loaded again within one exam; after that somebody means it."""

Answer = TypeVar("Answer")


class Patience:
    """Asks through a gateway that may go away for a while; all questions of an exam share one.

    Args:
        gateway: Open.
        limit_s: Longest time without any answer.
        say: Writes a line for people.
        go_on: How to go on after a wait that was too long, as a sentence.
    """

    def __init__(self, gateway: Gateway, limit_s: float, say: Callable[[str], None], *, go_on: str) -> None:
        self.gateway = gateway
        self._limit_s = limit_s
        self._say = say
        self._go_on = go_on
        self._away_since: float | None = None
        self._reloads: Counter[str] = Counter()
        self._loading = asyncio.Lock()

    async def health(self) -> Health:
        """Waits for a gateway with an engine, and returns what answers there."""

        async def look() -> Health:
            found = await self.gateway.health()
            if found.engine == "down":
                raise GatewayBusy("No engine answers behind the gateway.", code="engine_down", hint="make serve")
            return found

        return await self.until_answered("", look)

    async def until_answered(self, served: str, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeats `work` while the gateway cannot answer; any other failure is raised at once.

        Args:
            served: Whom `work` asks; an adapter of that name that was unloaded meanwhile is loaded again.
            work: Asks once.

        Raises:
            PreceptorError: It was away for longer than the limit; `code` is `gateway_away`.
        """
        while True:
            try:
                answer = await work()
            except (GatewayBusy, GatewayDown) as error:
                if error.code == "adapter_not_loaded":
                    await self._load_again(served, error)
                else:
                    await self._wait(error)
                continue
            if self._away_since is not None:
                self._say(f"The gateway answers again after {time.monotonic() - self._away_since:.0f} s.")
                self._away_since = None
            return answer

    async def have_loaded(self, served: str) -> None:
        """Has the adapter that a served name names loaded, without a pin."""
        adapter = parse_served_name(served).adapter
        if adapter is None:
            return
        view = await self.gateway.register(adapter, pin=False)
        if view.state is not AdapterState.READY:
            raise GatewayFailure(
                f"{adapter!r} is {view.state.value}: {view.reason}",
                code="adapter_not_ready",
                hint="Look at GET /v1/adapters.",
            )

    async def _load_again(self, served: str, error: PreceptorError) -> None:
        async with self._loading:
            if served in await self.gateway.served_names():
                await asyncio.sleep(0.1)  # another question had it loaded
                return
            self._reloads[served] += 1
            if self._reloads[served] > _RELOADS:
                raise PreceptorError(
                    f"{served!r} was unloaded {self._reloads[served]} times while it sat the exam.",
                    code="adapter_unloaded",
                    hint=f"Find out who unloads it. {self._go_on}",
                ) from error
            self._say(f"{served} was unloaded during the exam; it is loaded again.")
            try:
                await self.have_loaded(served)
            except (GatewayBusy, GatewayDown) as busy:
                await self._wait(busy)

    async def _wait(self, error: PreceptorError) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._say(f"{error.message} Waiting up to {self._limit_s:.0f} s; answers so far are kept.")
        if now - self._away_since >= self._limit_s:
            raise PreceptorError(
                f"Nobody answered for {self._limit_s:.0f} s: {error.message}", code="gateway_away", hint=self._go_on
            ) from error
        await asyncio.sleep(min(PAUSE_S, self._limit_s))


async def require_served(patience: Patience, served: list[str]) -> None:
    """Makes sure that every served name can be asked, loading adapters that are not.

    Raises:
        InvalidInput: One does not exist, or it is not spelt like one.
    """
    listed = await patience.until_answered("", patience.gateway.served_names)
    for name in served:
        parsed = parse_served_name(name)
        if name in listed:
            continue
        if parsed.adapter is not None:
            await _load(patience, name)
        else:
            raise InvalidInput(
                f"There is no served name {name!r} at the gateway.",
                code="unknown_served_name",
                hint=f"Served names: {', '.join(listed)}.",
            )


async def _load(patience: Patience, name: str) -> None:
    try:
        await patience.until_answered(name, lambda: patience.have_loaded(name))
    except GatewayFailure as error:
        if error.code != "unknown_adapter":
            raise
        raise InvalidInput(error.message, code=error.code, hint="GET /v1/adapters lists the adapters.") from error
