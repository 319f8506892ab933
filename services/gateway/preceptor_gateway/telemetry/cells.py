"""The cells that the hot path counts in, and how they become Prometheus series when somebody scrapes.

prometheus_client's own children lock: 0.26 us a count, 0.57 us an observation. The gateway counts on one event loop, so
plain integers do (0.03 and 0.11 us). docs/monitoring.md has the figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

NONE = "(none)"
"""Label of what a request never reached: an unknown path has no route, a refused key no domain."""
OTHER = "(other)"
"""Label of everything beyond the bound; no domain, adapter or route can have this name."""
USAGE, CHUNKS = "usage", "chunks"

LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WAITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Spread:
    """A histogram's cells: how many values fell at or below each bound, not added up, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Counts as Prometheus wants them: added up, by upper bound."""
        edges = [*map(str, self.bounds), "+Inf"]
        return list(zip(edges, map(float, accumulate(self.counts)), strict=True))


class Labels(NamedTuple):
    """What a cell is about."""

    route: str
    domain: str
    adapter: str


class Cells:
    """All cells of one route, domain and adapter."""

    __slots__ = (
        "cached_tokens",
        "chunk_tokens",
        "chunks",
        "completion_tokens",
        "engine_queue",
        "errors",
        "first_token",
        "gaps",
        "in_flight",
        "labels",
        "limited",
        "prompt_tokens",
        "queue",
        "requests",
        "seconds",
        "unmetered",
    )

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.requests: dict[int, int] = {}
        self.errors: dict[tuple[int, str], int] = {}
        self.limited: dict[str, int] = {}
        self.in_flight = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.chunk_tokens = 0
        self.chunks = 0
        self.unmetered = 0
        self.seconds = Spread(LONG)
        self.queue = Spread(WAITS)
        self.engine_queue = Spread(WAITS)
        self.first_token = Spread(FIRST)
        self.gaps = Spread(GAPS)


_Count = Callable[[Cells], float]
_COUNTERS: tuple[tuple[str, str, _Count], ...] = (
    (
        "preceptor_prompt_tokens",
        "Prompt tokens of answers whose usage the engine told.",
        lambda cells: cells.prompt_tokens,
    ),
    (
        "preceptor_cached_prompt_tokens",
        "Those of them that were in the engine's prefix cache.",
        lambda cells: cells.cached_tokens,
    ),
    ("preceptor_stream_chunks", "Events of streams, [DONE] among them.", lambda cells: cells.chunks),
    (
        "preceptor_answers_without_usage",
        "Answers whose prompt tokens nobody told: streams without include_usage, and those that broke off.",
        lambda cells: cells.unmetered,
    ),
)
_SPREADS: tuple[tuple[str, str, Callable[[Cells], Spread]], ...] = (
    ("preceptor_request_seconds", "Seconds until the last byte.", lambda cells: cells.seconds),
    (
        "preceptor_queue_seconds",
        "Seconds in the gateway: from the request's head until the engine is asked.",
        lambda cells: cells.queue,
    ),
    (
        "preceptor_engine_queue_seconds",
        "Seconds in the engine's queue, where the engine tells them with the answer.",
        lambda cells: cells.engine_queue,
    ),
    (
        "preceptor_time_to_first_token_seconds",
        "Seconds from the request's head until the first piece of a stream.",
        lambda cells: cells.first_token,
    ),
    (
        "preceptor_inter_token_seconds",
        "Seconds between two pieces of a stream; a piece is one token unless engine or network gathered several.",
        lambda cells: cells.gaps,
    ),
)
_LABELS = list(Labels._fields)


class CellCollector(Collector):
    """Turns cells into series at a scrape."""

    def __init__(self, cells: Callable[[], Iterable[Cells]]) -> None:
        self._cells = cells

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Yields every family, also those that are empty still."""
        every = list(self._cells())
        yield _flight(every)
        yield from _outcomes(every)
        yield _completions(every)
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for cells in every:
                counter.add_metric(cells.labels, count(cells))
            yield counter
        for name, text, spread in _SPREADS:
            histogram = HistogramMetricFamily(name, text, labels=_LABELS)
            for cells in every:
                # 15 lines each: those that never saw a value are left out.
                if any(spread(cells).counts):
                    histogram.add_metric(cells.labels, spread(cells).buckets(), spread(cells).total)
            yield histogram


def _flight(every: list[Cells]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily("preceptor_requests_in_flight", "Requests being answered.", labels=_LABELS)
    for cells in every:
        gauge.add_metric(cells.labels, cells.in_flight)
    return gauge


def _outcomes(every: list[Cells]) -> Iterator[CounterMetricFamily]:
    requests = CounterMetricFamily("preceptor_requests", "Requests answered.", labels=[*_LABELS, "status"])
    errors = CounterMetricFamily(
        "preceptor_errors",
        "Requests that ended in an error, in the middle of a stream too.",
        labels=[*_LABELS, "status", "code"],
    )
    limited = CounterMetricFamily(
        "preceptor_limited_requests", "Requests refused because of a limit.", labels=[*_LABELS, "limit"]
    )
    for cells in every:
        for status, count in cells.requests.items():
            requests.add_metric([*cells.labels, str(status)], count)
        for (status, code), count in cells.errors.items():
            errors.add_metric([*cells.labels, str(status), code], count)
        for limit, count in cells.limited.items():
            limited.add_metric([*cells.labels, limit], count)
    yield from (requests, errors, limited)


def _completions(every: list[Cells]) -> CounterMetricFamily:
    counter = CounterMetricFamily(
        "preceptor_completion_tokens",
        "Tokens of answers: as the engine told them, or for streams without usage one for each piece.",
        labels=[*_LABELS, "counted"],
    )
    for cells in every:
        counter.add_metric([*cells.labels, USAGE], cells.completion_tokens)
        counter.add_metric([*cells.labels, CHUNKS], cells.chunk_tokens)
    return counter
