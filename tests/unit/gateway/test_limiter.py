"""Admission, release and booking, in memory and in a real Redis."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as some
from preceptor_contracts.errors import PrerequisiteError
from preceptor_gateway.keys.callers import Caller, Limits
from preceptor_gateway.limits import counters
from preceptor_gateway.limits.counters import Booking, Counted, Counters, MemoryCounters, RedisCounters, open_counters
from preceptor_gateway.limits.limiter import FREE, Admission, Limiter, RateLimited

from tests.fakes.serving import free_port
from tests.servers import RedisServer, running_redis

USE = frozenset({"use"})
_callers = iter(range(10**9))


def caller(requests: int = 0, tokens: int = 0, concurrent: int = 0) -> Caller:
    """Somebody new."""
    limits = Limits(requests, tokens, concurrent)
    return Caller(f"key-{next(_callers)}", "a", USE, limits, limits.none)


class Clock:
    """Time that a test moves. It begins at a minute's edge, near now, for Redis forgets by its own clock."""

    def __init__(self) -> None:
        self.now = float(int(time.time()) // 60 * 60)

    def __call__(self) -> float:
        return self.now


class Desk:
    """A limiter with what it reports."""

    def __init__(self, store: Counters) -> None:
        self.clock = Clock()
        self.refused: list[str] = []
        self.limiter = Limiter(store, self.refused.append, self.clock)

    async def admit(self, who: Caller, tokens: int = 0, requests: int = 1) -> Admission:
        admission = await self.limiter.admit(who, tokens, requests)
        await self.settled()
        return admission

    async def refuse(self, who: Caller, tokens: int = 0, requests: int = 1) -> RateLimited:
        with pytest.raises(RateLimited) as caught:
            await self.limiter.admit(who, tokens, requests)
        await self.settled()
        return caught.value

    async def settled(self) -> None:
        """Waits for what is booked behind a request's back."""
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            with suppress(Exception):
                await task


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def desk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(counters, "WAIT_S", 10)  # a busy machine is not a Redis that is away

    def away() -> None:
        raise AssertionError("Redis is there and was not asked.")

    memory = request.param == "memory"
    desk = Desk(MemoryCounters() if memory else RedisCounters(request.getfixturevalue("redis_server").url, away))
    yield desk
    await desk.limiter.close()


def numbers(admission: Admission | RateLimited) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in admission.headers}


async def test_what_another_store_was_charged_is_no_credit_here() -> None:
    memory, one = MemoryCounters(), Booking("tokens/a-key", 1000, 30)
    await memory.book([one])
    memory.book_later(one._replace(amount=-800))
    assert await memory.book([one]) == [Counted(0, 30)]


async def test_a_key_without_limits_costs_nothing() -> None:
    class Nowhere(MemoryCounters):
        async def book(self, bookings: Sequence[Booking]) -> list[Counted]:
            raise AssertionError

    desk = Desk(Nowhere())
    assert await desk.limiter.admit(caller(), 10**9, 256) is FREE
    await FREE.done(5)
    assert FREE.headers == []


async def test_requests_run_out_and_come_back_evenly(desk: Desk) -> None:
    who = caller(requests=4)
    seen = [numbers(await desk.admit(who)) for _ in range(4)]
    assert seen[0] == {"limit-requests": "4", "remaining-requests": "3", "reset-requests": "2m0s"}
    assert [one["remaining-requests"] for one in seen] == ["3", "2", "1", "0"]
    error = await desk.refuse(who)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "limit of 4 requests per minute" in error.message
    assert who.key_id in error.message
    # 4 in this minute: one leaves after a quarter of the next.
    assert error.retry_after_s == 75
    assert numbers(error)["remaining-requests"] == "0"
    assert desk.refused == ["requests"]
    desk.clock.now += 61
    await desk.refuse(who)
    desk.clock.now += 14
    await desk.admit(who)
    await desk.refuse(who)
    desk.clock.now += 120
    assert numbers(await desk.admit(who))["remaining-requests"] == "3"


async def test_keys_do_not_count_for_each_other(desk: Desk) -> None:
    first, second = caller(requests=1), caller(requests=1)
    await desk.admit(first)
    await desk.refuse(first)
    await desk.admit(second)


async def test_what_is_refused_is_not_booked(desk: Desk) -> None:
    who = caller(requests=10, tokens=100)
    await desk.admit(who, 90)
    for _ in range(5):
        error = await desk.refuse(who, 20)
        assert "limit of 100 tokens per minute: 10 are left, and this request needs 20" in error.message
    seen = numbers(await desk.admit(who, 10))
    assert (seen["remaining-requests"], seen["remaining-tokens"]) == ("8", "0")
    assert set(desk.refused) == {"tokens"}


async def test_the_truth_replaces_the_estimate(desk: Desk) -> None:
    who = caller(tokens=100)
    admission = await desk.admit(who, 80)
    await admission.done(10)
    await desk.settled()
    admission = await desk.admit(who, 20)
    assert numbers(admission)["remaining-tokens"] == "70"
    await admission.done(60)
    await admission.done(60)  # again is nothing
    await desk.settled()
    assert numbers(await desk.admit(who, 1))["remaining-tokens"] == "29"
    untold = await desk.admit(who, 9)
    await untold.done()
    await desk.settled()
    assert numbers(await desk.admit(who, 1))["remaining-tokens"] == "19"


async def test_what_is_given_back_late_makes_no_room_that_never_was(desk: Desk) -> None:
    who = caller(tokens=100)
    desk.clock.now += 59
    admission = await desk.admit(who, 100)
    desk.clock.now += 31  # half of the minute before counts: 50
    await admission.done(20)
    await desk.settled()
    assert numbers(await desk.admit(who, 1))["remaining-tokens"] == "89"


async def test_a_request_above_the_whole_limit_is_told_not_to_wait(desk: Desk) -> None:
    who = caller(requests=3, tokens=100)
    error = await desk.refuse(who, 101)
    assert "limit of 100 tokens per minute, and this one request needs 101" in error.message
    assert (b"x-should-retry", b"false") in error.headers
    assert "waiting does not help" in error.hint
    assert "Send fewer items" in (await desk.refuse(who, 1, requests=4)).hint
    assert numbers(await desk.admit(who, 1))["remaining-requests"] == "2"


async def test_a_batch_costs_its_items(desk: Desk) -> None:
    who = caller(requests=10)
    assert numbers(await desk.admit(who, requests=7))["remaining-requests"] == "3"
    await desk.refuse(who, requests=4)
    await desk.admit(who, requests=3)


async def test_slots_are_taken_and_freed(desk: Desk) -> None:
    who = caller(concurrent=2)
    first, second = await desk.admit(who), await desk.admit(who)
    error = await desk.refuse(who)
    assert "2 requests under way, and its limit is 2 at once" in error.message
    assert error.retry_after_s == 1
    assert desk.refused == ["concurrent"]
    await first.done()
    await first.done()
    third = await desk.admit(who)
    await desk.refuse(who)
    await second.done()
    await third.done()
    assert desk.limiter.running(who.key_id) == 0


async def test_a_refused_minute_frees_the_slot(desk: Desk) -> None:
    who = caller(requests=1, concurrent=5)
    admission = await desk.admit(who)
    for _ in range(9):
        assert "per minute" in (await desk.refuse(who)).message
    assert desk.limiter.running(who.key_id) == 1
    await admission.done()
    assert desk.limiter.running(who.key_id) == 0


async def test_requests_at_once_get_the_limit_and_no_more(desk: Desk) -> None:
    who = caller(requests=10, tokens=10**6)
    results = await asyncio.gather(*(desk.limiter.admit(who, 5) for _ in range(40)), return_exceptions=True)
    assert sum(isinstance(one, Admission) for one in results) == 10
    assert sum(isinstance(one, RateLimited) for one in results) == 30
    await desk.settled()
    assert numbers(await desk.refuse(who))["remaining-tokens"] == str(10**6 - 50)


async def test_cancelled_while_it_asks_frees_the_slot() -> None:
    class Slow(MemoryCounters):
        async def book(self, bookings: Sequence[Booking]) -> list[Counted]:
            await asyncio.sleep(60)
            raise AssertionError

    desk, who = Desk(Slow()), caller(requests=1, concurrent=1)
    task = asyncio.create_task(desk.limiter.admit(who))
    await asyncio.sleep(0)
    assert desk.limiter.running(who.key_id) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert desk.limiter.running(who.key_id) == 0


STEPS = some.lists(
    some.one_of(
        some.tuples(some.just("admit"), some.integers(0, 60), some.integers(1, 3)),
        some.tuples(some.just("done"), some.integers(0, 9), some.integers(0, 90)),
        some.tuples(some.just("wait"), some.floats(0, 70), some.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_accounts_are_right_whatever_happens(steps: list[tuple[str, float, int]]) -> None:
    async def play() -> None:
        desk, who = Desk(MemoryCounters()), caller(requests=20, tokens=100, concurrent=6)
        open_ones: list[tuple[Admission, int, int]] = []
        requests: dict[int, int] = {}
        tokens: dict[int, int] = {}

        def used(book: dict[int, int]) -> float:
            minute, rest = int(desk.clock.now // 60), desk.clock.now % 60
            return max(0, book.get(minute - 1, 0)) * (1 - rest / 60) + max(0, book.get(minute, 0))

        for what, first, second in steps:
            minute = int(desk.clock.now // 60)
            if what == "wait":
                desk.clock.now += first
            elif what == "done" and open_ones:
                admission, booked, in_minute = open_ones.pop(int(first) % len(open_ones))
                await admission.done(second)
                where = in_minute if second < booked else minute
                tokens[where] = tokens.get(where, 0) + second - booked
            elif what == "admit":
                cost = int(first)
                fits = len(open_ones) < 6 and used(requests) + second <= 20 + 1e-6 and used(tokens) + cost <= 100 + 1e-6
                if not fits:
                    assert (await desk.refuse(who, cost, second)).retry_after_s >= 1
                else:
                    admission = await desk.limiter.admit(who, cost, second)
                    open_ones.append((admission, cost, minute))
                    requests[minute] = requests.get(minute, 0) + second
                    tokens[minute] = tokens.get(minute, 0) + cost
            assert desk.limiter.running(who.key_id) == len(open_ones)

    asyncio.run(play())


async def test_two_gateways_share_a_redis(redis_server: RedisServer) -> None:
    here, there = (Desk(RedisCounters(redis_server.url, lambda: None)) for _ in range(2))
    who = caller(requests=2)
    await here.admit(who)
    await there.admit(who)
    await here.refuse(who)
    await there.refuse(who)
    await here.limiter.close()
    await there.limiter.close()


async def test_counts_in_redis_go_by_themselves(redis_server: RedisServer) -> None:
    desk, who = Desk(RedisCounters(redis_server.url, lambda: None)), caller(requests=5, tokens=50)
    await (await desk.admit(who, 10)).done(3)
    await desk.settled()
    with redis.Redis(port=redis_server.port) as client:
        names = [name for name in client.keys("*") if who.key_id.encode() + b"/" in name]
        assert len(names) == 2
        assert all(0 < client.ttl(name) <= 120 for name in names)
    await desk.limiter.close()


async def test_without_redis_each_gateway_counts_alone_and_nobody_waits_long() -> None:
    away: list[None] = []
    desk = Desk(RedisCounters(f"redis://127.0.0.1:{free_port()}", lambda: away.append(None)))
    who = caller(requests=3, concurrent=5)
    started = time.perf_counter()
    for _ in range(3):
        await (await desk.admit(who)).done()
    await desk.refuse(who)
    assert time.perf_counter() - started < 1
    assert len(away) >= 4
    await desk.limiter.close()


async def test_a_redis_that_says_nothing_costs_one_short_wait() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        desk = Desk(RedisCounters(f"redis://127.0.0.1:{silent.getsockname()[1]}", lambda: None))
        who, waits = caller(tokens=1000), []
        for _ in range(4):
            started = time.perf_counter()
            await (await desk.limiter.admit(who, 10)).done(5)
            waits.append(time.perf_counter() - started)
        assert waits[0] < 0.6
        assert max(waits[1:]) < 0.05
        await desk.limiter.close()


async def test_redis_lost_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "AGAIN_S", 0.1)
    with running_redis(tmp_path) as server:
        away: list[None] = []
        desk, who = Desk(RedisCounters(server.url, lambda: away.append(None))), caller(requests=100)
        await desk.admit(who)
        assert away == []
        server.stop()
        await desk.admit(who)
        await desk.admit(who)
        assert len(away) == 2
        server.start()
        await asyncio.sleep(0.15)
        await desk.admit(who)
        await desk.admit(who)
        assert len(away) == 2
        await desk.limiter.close()


@pytest.mark.parametrize("url", ["", "memory", "memcached://h", "redis://h:port"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(PrerequisiteError, match="GATEWAY_LIMITS_URL"):
        open_counters(url, lambda: None)
