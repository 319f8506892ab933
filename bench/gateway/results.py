"""What was measured, and the arithmetic on it: medians over rounds, and ratios taken inside a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.gateway.contestants import DIRECT, LITELLM, OURS, ROUTER
from bench.gateway.load import Load

GOAL_CONCURRENCY = 32
STEADY_REQUESTS = 50_000


class Spread(NamedTuple):
    """A median with the least and the most over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Summarises one figure of several rounds."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Point:
    """One run of the load tool."""

    round: int
    contestant: str
    stream: bool
    concurrency: int
    load: Load


@dataclass(frozen=True)
class Streams:
    """What the stream client saw."""

    round: int
    contestant: str
    concurrency: int
    streams: int
    first_p50_ms: float
    first_p95_ms: float
    events: int
    """Events with content in one stream."""
    pieces: float
    """Chunks in which one stream came, on average."""
    bytes: int
    hashes: tuple[str, ...]
    """Of every payload that came."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a contestant's processes, in MiB."""

    round: int
    contestant: str
    started: float
    ended: float
    cpu_ms: float
    """Processor time a request at the goal's concurrency, in milliseconds."""


@dataclass(frozen=True)
class Steady:
    """Resident memory over many requests in a row."""

    started_mib: float
    """When it began to serve."""
    warm_mib: float
    """After the warm-up."""
    ended_mib: float
    warm_requests: int
    requests: int
    errors: int

    @property
    def growth(self) -> float:
        """Share that came on top after the warm-up."""
        return self.ended_mib / self.warm_mib - 1


@dataclass(frozen=True)
class Death:
    """A contestant that ended by itself; its round was done again."""

    round: int
    contestant: str
    status: int
    """Exit status; less than 0 by a signal."""


@dataclass
class Results:
    """Everything that a run collects."""

    points: list[Point] = field(default_factory=list)
    streams: list[Streams] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    steady: Steady | None = None
    profiles: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Shares of samples by owner, by what was asked."""

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds."""
        return sorted({point.round for point in self.points})

    def drop(self, round_: int, contestant: str) -> None:
        """Forgets what a contestant did in a round."""
        gone = (round_, contestant)
        self.points = [one for one in self.points if (one.round, one.contestant) != gone]
        self.streams = [one for one in self.streams if (one.round, one.contestant) != gone]
        self.memory = [one for one in self.memory if (one.round, one.contestant) != gone]

    def point(self, round_: int, contestant: str, *, stream: bool, concurrency: int) -> Point:
        """One point of one round."""
        return next(
            point
            for point in self.points
            if (point.round, point.contestant, point.stream, point.concurrency)
            == (round_, contestant, stream, concurrency)
        )

    def over_rounds(self, contestant: str, *, stream: bool, concurrency: int, of: Callable[[Load], float]) -> Spread:
        """One figure of a contestant over the rounds."""
        return spread(
            of(self.point(round_, contestant, stream=stream, concurrency=concurrency).load) for round_ in self.rounds
        )

    def added(self, contestant: str, concurrency: int, of: Callable[[Load], float]) -> Spread:
        """A latency on top of direct, each round against its own."""
        return spread(self._added(round_, contestant, concurrency, of) for round_ in self.rounds)

    def _added(self, round_: int, contestant: str, concurrency: int, of: Callable[[Load], float]) -> float:
        mine, direct = (
            self.point(round_, name, stream=False, concurrency=concurrency).load for name in (contestant, DIRECT)
        )
        return of(mine) - of(direct)

    def rate_ratio(self, contestant: str, other: str, *, stream: bool, concurrency: int) -> Spread:
        """Answers a second against another's, round by round; streams count their events."""
        ratios = []
        for round_ in self.rounds:
            mine, others = (
                self.point(round_, name, stream=stream, concurrency=concurrency).load.rate
                * (self.events(name) if stream else 1)
                for name in (contestant, other)
            )
            ratios.append(mine / others)
        return spread(ratios)

    def added_ratio(self, contestant: str, other: str, concurrency: int) -> Spread:
        """Added p50 against another's added p50, round by round."""
        return spread(
            self._added(round_, contestant, concurrency, _p50) / self._added(round_, other, concurrency, _p50)
            for round_ in self.rounds
        )

    def events(self, contestant: str) -> int:
        """Events with content in one stream, as the stream client counted them."""
        return next((one.events for one in self.streams if one.contestant == contestant), 0)

    def is_identical(self, contestant: str) -> bool:
        """True where every stream of every round had the bytes that direct had."""
        direct = {name for one in self.streams if one.contestant == DIRECT for name in one.hashes}
        mine = {name for one in self.streams if one.contestant == contestant for name in one.hashes}
        return len(direct) == 1 and mine == direct

    def errors(self, contestant: str) -> int:
        """Answers that failed in any run."""
        return sum(point.load.errors for point in self.points if point.contestant == contestant)

    @property
    def concurrencies(self) -> list[int]:
        """Of whole answers."""
        return sorted({point.concurrency for point in self.points if not point.stream})

    @property
    def stream_concurrencies(self) -> list[int]:
        """Of streams."""
        return sorted({point.concurrency for point in self.points if point.stream})


def _p50(load: Load) -> float:
    return load.p50_ms


class Goal(NamedTuple):
    """A line of the issue's table beside what was reached."""

    measure: str
    goal: str
    reached: str
    word: str
    """pass, FAIL, or why neither can be said."""


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def goals(results: Results) -> list[Goal]:
    """Every goal of the issue, decided by the median; a failed answer of ours fails what rests on it."""
    at = GOAL_CONCURRENCY
    clean = results.errors(OURS) == 0
    litellm = results.rate_ratio(OURS, LITELLM, stream=False, concurrency=at)
    router = results.rate_ratio(OURS, ROUTER, stream=False, concurrency=at)
    added = results.added_ratio(OURS, LITELLM, 1)
    chunks = results.rate_ratio(OURS, DIRECT, stream=True, concurrency=at)
    identical = results.is_identical(OURS)
    times, share = "{0.median:.1f}x ({0.low:.1f} to {0.high:.1f})", "{0.median:.2f}x ({0.low:.2f} to {0.high:.2f})"
    one_in = f"1/{1 / added.median:.1f} (1/{1 / added.high:.1f} to 1/{1 / added.low:.1f})" if added.low > 0 else "none"
    bytes_word = "byte-identical" if identical else "NOT byte-identical"
    found = [
        Goal(
            f"requests/s at c={at}, against LiteLLM",
            ">= 30x",
            times.format(litellm),
            _word(clean and litellm.median >= 30),
        ),
        Goal("added p50 at c=1, against LiteLLM", "<= 1/15", one_in, _word(clean and 0 < added.median <= 1 / 15)),
        Goal(
            f"requests/s at c={at}, against vllm-router",
            ">= 0.4x",
            share.format(router),
            _word(clean and router.median >= 0.4),
        ),
        Goal(
            f"streaming at c={at}: chunks/s against direct",
            ">= 0.5x, byte-identical payloads",
            f"{share.format(chunks)}, {bytes_word}",
            _word(clean and identical and chunks.median >= 0.5),
        ),
    ]
    if (steady := results.steady) is not None:
        reached = f"{steady.growth:+.1%} over {steady.requests:,}"
        word = _word(steady.growth < 0.05 and not steady.errors)
        word = word if steady.requests >= STEADY_REQUESTS else "too few requests to say"
        found.append(Goal(f"growth of RSS over {STEADY_REQUESTS:,} requests", "< 5 %", reached, word))
    return found
