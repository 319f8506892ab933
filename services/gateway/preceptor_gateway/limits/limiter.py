"""Admits requests within a key's limits, tells where it stands, and books the truth afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from preceptor_gateway.keys.callers import Caller
from preceptor_gateway.limits.counters import Booking, Counters
from preceptor_gateway.limits.window import SPAN_S, Window, minute_of, spell
from preceptor_gateway.problems import GatewayError

RawHeaders = list[tuple[bytes, bytes]]


class RateLimited(GatewayError):
    """A key asks for more than its limits allow."""

    status = 429
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, hint: str, retry_after_s: int, headers: RawHeaders) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.headers = headers
        """What `x-ratelimit-*` says at this moment."""


class _Meter(NamedTuple):
    """One limit of one key while a request asks for admission."""

    kind: str
    """`requests` or `tokens`, as the headers spell it."""
    limit: int
    cost: int

    def booking(self, caller: Caller, minute: int) -> Booking:
        """What admission costs."""
        return Booking(f"{caller.key_id}/{self.kind}", minute, self.cost)


class Admission:
    """A request that was let in. `done` must be called once it is over, however it ended.

    Args:
        headers: `x-ratelimit-*`, for the response.
        release: Frees the slot.
        settle: Books the difference between estimate and truth.
    """

    __slots__ = ("_release", "_settle", "headers")

    def __init__(
        self,
        headers: RawHeaders,
        release: Callable[[], None] | None = None,
        settle: Callable[[int], None] | None = None,
    ) -> None:
        self.headers = headers
        self._release = release
        self._settle = settle

    async def done(self, tokens_used: int | None = None) -> None:
        """Frees the slot and books the tokens that were really used; None leaves the estimate. Again is nothing.

        It never gives the event loop away, so it runs to its end in a request that is being cancelled, too.
        """
        release, self._release = self._release, None
        settle, self._settle = self._settle, None
        if release is not None:
            release()
        if settle is not None and tokens_used is not None:
            settle(tokens_used)


FREE = Admission([])
"""What every request of a key without limits gets."""


class Limiter:
    """The limits of all keys.

    Requests and tokens a minute are counted where `counters` are; slots for concurrent requests in this process.

    Args:
        counters: Where minutes are counted.
        on_limited: Called with `requests`, `tokens` or `concurrent` for every request that is refused.
        clock: Seconds since 1970.
    """

    def __init__(
        self, counters: Counters, on_limited: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._counters = counters
        self._on_limited = on_limited
        self._clock = clock
        self._running: dict[str, int] = {}

    async def admit(self, caller: Caller, tokens: int = 0, requests: int = 1) -> Admission:
        """Lets a request in, or says which limit is in the way.

        A key without limits costs one look at a field. In memory nothing here waits.

        Args:
            caller: Who asks.
            tokens: How many tokens, prompt and answer, the request will probably take.
            requests: How many requests it counts for, e.g. the items of a batch.

        Raises:
            RateLimited: A limit is in the way. Nothing was booked then.
        """
        if caller.unlimited:
            return FREE
        limits = caller.limits
        wanted = (("requests", limits.requests_per_minute, requests), ("tokens", limits.tokens_per_minute, tokens))
        meters = [_Meter(*one) for one in wanted if one[1]]
        for meter in meters:
            if meter.cost > meter.limit:
                raise self._refuse(meter.kind, _too_large(caller, meter))
        self._take_slot(caller)
        try:
            minute, elapsed = minute_of(self._clock())
            bookings = [meter.booking(caller, minute) for meter in meters]
            counted = await self._counters.book(bookings) if bookings else []
            windows = [Window(meter.limit, *count, elapsed) for meter, count in zip(meters, counted, strict=True)]
            if not all(window.holds for window in windows):
                for booking in bookings:
                    self._counters.book_later(booking._replace(amount=-booking.amount))
                raise self._used_up(caller, meters, windows)
        except BaseException:
            self._free_slot(caller)
            raise
        headers = _headers(meters, windows)
        settle = self._settler(bookings[-1]) if limits.tokens_per_minute else None
        return Admission(headers, lambda: self._free_slot(caller), settle)

    def running(self, key_id: str) -> int:
        """How many requests of a key are being answered by this process."""
        return self._running.get(key_id, 0)

    async def close(self) -> None:
        """Lets go of the counters."""
        await self._counters.close()

    def _take_slot(self, caller: Caller) -> None:
        most, running = caller.limits.concurrent_requests, self.running(caller.key_id)
        if most and running >= most:
            problem = RateLimited(
                f"Key {caller.key_id!r} has {running} requests under way, and its limit is {most} at once.",
                hint="Wait until one of them is answered, or ask an administrator for a higher limit.",
                retry_after_s=1,
                headers=[],
            )
            raise self._refuse("concurrent", problem)
        self._running[caller.key_id] = running + 1

    def _free_slot(self, caller: Caller) -> None:
        rest = self._running[caller.key_id] - 1
        if rest:
            self._running[caller.key_id] = rest
        else:
            del self._running[caller.key_id]

    def _settler(self, booked: Booking) -> Callable[[int], None]:
        def settle(used: int) -> None:
            difference = used - booked.amount
            if difference < 0:
                # Given back where it was taken: in another minute it would make room that was never there.
                self._counters.book_later(booked._replace(amount=difference))
            elif difference > 0:
                minute, _ = minute_of(self._clock())
                self._counters.book_later(booked._replace(minute=minute, amount=difference))

        return settle

    def _used_up(self, caller: Caller, meters: list[_Meter], windows: list[Window]) -> RateLimited:
        """Names the limit that takes longest to make room; the windows hold this request's own cost, too."""
        before = [
            window._replace(current=max(0, window.current - meter.cost))
            for meter, window in zip(meters, windows, strict=True)
        ]
        waits = [window.wait_s(meter.cost) for meter, window in zip(meters, before, strict=True)]
        index = max(range(len(waits)), key=lambda one: (waits[one], not windows[one].holds))
        meter, seconds = meters[index], max(1, math.ceil(waits[index]))
        left = before[index].remaining
        problem = RateLimited(
            f"Key {caller.key_id!r} has a limit of {meter.limit} {meter.kind} per minute: {left} are left, and this "
            f"request needs {meter.cost}.",
            hint=f"Wait {seconds} s, or ask an administrator for a higher limit.",
            retry_after_s=seconds,
            headers=_headers(meters, before),
        )
        return self._refuse(meter.kind, problem)

    def _refuse(self, kind: str, problem: RateLimited) -> RateLimited:
        self._on_limited(kind)
        return problem


def _too_large(caller: Caller, meter: _Meter) -> RateLimited:
    what = "Lower max_tokens or send less" if meter.kind == "tokens" else "Send fewer items at once"
    return RateLimited(
        f"Key {caller.key_id!r} has a limit of {meter.limit} {meter.kind} per minute, and this one request needs "
        f"{meter.cost}.",
        hint=f"{what}; waiting does not help.",
        retry_after_s=SPAN_S,
        # The OpenAI SDK obeys it, and does not try in vain.
        headers=[(b"x-should-retry", b"false")],
    )


def _headers(meters: list[_Meter], windows: list[Window]) -> RawHeaders:
    found: RawHeaders = []
    for meter, window in zip(meters, windows, strict=True):
        kind = meter.kind.encode()
        found += (
            (b"x-ratelimit-limit-" + kind, b"%d" % window.limit),
            (b"x-ratelimit-remaining-" + kind, b"%d" % window.remaining),
            (b"x-ratelimit-reset-" + kind, spell(window.reset_s).encode()),
        )
    return found
