"""Where counts of minutes are kept: the storages of the library `limits`, in memory or in Redis.

Its strategies are not used: they can not give back what was estimated and not needed, and Redis would be asked twice
where it is asked once here (docs/decisions/0006).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError, StorageError
from limits.storage import MemoryStorage
from preceptor_contracts.errors import PrerequisiteError
from redis.asyncio import BlockingConnectionPool

from preceptor_gateway.limits.window import SPAN_S

WAIT_S = 0.25
"""How long Redis may take. A request is not worth more of a wait than this."""
AGAIN_S = 5.0
"""How long Redis is left alone after it failed, so that its absence costs one wait, not one a request."""
_CONNECTIONS = 16
_KEPT_S = 2 * SPAN_S
"""A minute's count is needed until the minute behind it is over."""
log = structlog.get_logger("limits")


class Booking(NamedTuple):
    """So much more of one count."""

    name: str
    """What is counted, for whom."""
    minute: int
    amount: int
    """Below zero: given back."""


class Counted(NamedTuple):
    """A count behind a booking."""

    previous: int
    current: int


class Counters(Protocol):
    """Adds up by name and minute."""

    async def book(self, bookings: Sequence[Booking]) -> list[Counted]:
        """Books, and returns each count behind its booking."""
        ...

    def book_later(self, booking: Booking) -> None:
        """Books without an answer and without a wait, for where a request may be gone already."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


def _keys(booking: Booking) -> tuple[str, str]:
    return f"{booking.name}/{booking.minute - 1}", f"{booking.name}/{booking.minute}"


class MemoryCounters:
    """In this process. Never waits: `book` runs to its end without giving the event loop away."""

    def __init__(self) -> None:
        # The synchronous storage: its asynchronous twin looks through every count on every request.
        self._storage = MemoryStorage()

    async def book(self, bookings: Sequence[Booking]) -> list[Counted]:
        """Books, and returns each count behind its booking."""
        found = []
        for booking in bookings:
            previous, current = _keys(booking)
            count = self._add(current, booking.amount)
            found.append(Counted(max(0, self._storage.get(previous)), max(0, count)))
        return found

    def book_later(self, booking: Booking) -> None:
        """Books at once."""
        self._add(_keys(booking)[1], booking.amount)

    def _add(self, key: str, amount: int) -> int:
        # What Redis was charged before it went away is not given back here: a count below zero would be credit.
        return self._storage.incr(key, _KEPT_S, max(amount, -max(0, self._storage.get(key))))

    async def close(self) -> None:
        """Nothing to let go of."""


class RedisCounters:
    """In Redis, shared by all gateways that name the same one; in memory while Redis is away.

    Args:
        url: `redis://...` or `rediss://...`.
        on_away: Called for every booking that Redis did not take.

    Raises:
        PrerequisiteError: The URL cannot be read.
    """

    def __init__(self, url: str, on_away: Callable[[], None]) -> None:
        try:
            # A bounded pool: a burst must share connections, not open one a command.
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=WAIT_S,
                socket_timeout=WAIT_S,
                socket_connect_timeout=WAIT_S,
            )
            self._storage = RedisStorage(
                f"async+{url}",
                implementation="redispy",
                key_prefix="preceptor",
                wrap_exceptions=True,
                connection_pool=self._pool,  # type: ignore[arg-type]  # passed on to redis-py, as documented
            )
        except (ValueError, ConfigurationError):
            # Without its cause, whose words may hold the password.
            raise PrerequisiteError(
                "GATEWAY_LIMITS_URL is not the URL of a Redis.", hint="Write redis://<host>:<port>/<database>."
            ) from None
        self._instead = MemoryCounters()
        self._on_away = on_away
        self._away_until = 0.0
        self._later: set[asyncio.Task[list[Counted]]] = set()

    async def book(self, bookings: Sequence[Booking]) -> list[Counted]:
        """Books, and returns each count behind its booking; never raises, waits a quarter of a second at most."""
        if self._away_until:
            if time.monotonic() < self._away_until:
                self._on_away()
                return await self._instead.book(bookings)
            # This request looks whether Redis is back; those beside it do not wait for the answer.
            self._away_until = time.monotonic() + AGAIN_S
        try:
            async with asyncio.timeout(WAIT_S):
                found = await asyncio.gather(*(self._one(booking) for booking in bookings))
        except (StorageError, TimeoutError, OSError) as error:
            self._mark_away(error)
            self._on_away()
            return await self._instead.book(bookings)
        if self._away_until:
            self._away_until = 0.0
            log.info("Redis is back; limits are shared again")
        return list(found)

    def book_later(self, booking: Booking) -> None:
        """Books in a task of its own."""
        task = asyncio.ensure_future(self.book([booking]))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def close(self) -> None:
        """Finishes what is to be booked and closes the connections to Redis."""
        await asyncio.gather(*self._later, return_exceptions=True)
        await self._pool.aclose()

    async def _one(self, booking: Booking) -> Counted:
        previous, current = _keys(booking)
        count, before = await asyncio.gather(
            self._storage.incr(current, _KEPT_S, booking.amount), self._storage.get(previous)
        )
        return Counted(max(0, before), max(0, count))

    def _mark_away(self, error: Exception) -> None:
        if not self._away_until:
            log.warning("Redis is away; each gateway counts limits alone", why=type(error).__name__)
        self._away_until = time.monotonic() + AGAIN_S


def open_counters(url: str, on_away: Callable[[], None]) -> Counters:
    """Counters by URL.

    Raises:
        PrerequisiteError: The URL cannot be read.
    """
    if url == "memory://":
        return MemoryCounters()
    if url.startswith(("redis://", "rediss://")):
        return RedisCounters(url, on_away)
    raise PrerequisiteError(
        "GATEWAY_LIMITS_URL names no store of counts.", hint="Write memory://, or redis://<host>:<port>/<database>."
    )
