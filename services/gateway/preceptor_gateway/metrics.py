"""Prometheus series with bounded label sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from preceptor_gateway.telemetry.cells import NONE, OTHER, CellCollector, Cells, Labels
from preceptor_gateway.telemetry.meter import CURRENT, RequestMeter

if TYPE_CHECKING:
    from preceptor_gateway.telemetry.tracing import Tracing

_MAX_CELLS = 2_000
"""Routes x domains x adapters that are told apart; whatever comes behind is counted as `(other)`."""


class Metrics:
    """The gateway's series. Labels come from routes, domains and registered adapters, never from clients."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tracing: Tracing | None = None
        """Set where traces are on."""
        self._cells: dict[tuple[str, str, str], Cells] = {}
        self.unresolved = Cells(Labels(NONE, NONE, NONE))
        """Requests of which is not known yet whom they ask."""
        self._cells[self.unresolved.labels] = self.unresolved
        self.registry.register(CellCollector(self._cells.values))
        self.answers = Counter(
            "preceptor_answers", "Answers asked for.", ["domain", "adapter", "kind"], registry=self.registry
        )
        self.safety = Counter("preceptor_safety_rules", "Safety rules set off.", ["domain"], registry=self.registry)
        self.limits_alone = Counter(
            "preceptor_limits_alone", "Counts that Redis should have taken and did not.", registry=self.registry
        )
        self.engine_up = Gauge("preceptor_engine_up", "1 where the engine answers.", ["engine"], registry=self.registry)
        self.adapter_ready = Gauge(
            "preceptor_adapter_ready", "1 where the canary passed.", ["domain", "adapter"], registry=self.registry
        )
        self.adapter_state = Gauge(
            "preceptor_adapter_state",
            "1 for the state that an adapter is in on an engine; other states have no series.",
            ["domain", "adapter", "engine", "state"],
            registry=self.registry,
        )
        self.adapter_loads = Counter(
            "preceptor_adapter_loads", "Loads into the engine.", ["adapter", "outcome"], registry=self.registry
        )

    def begin(self, scope: Scope, request_id: str) -> RequestMeter:
        """Begins to count a request; the edge calls it first of all, and `done` last of all."""
        meter = RequestMeter(self, request_id)
        if self.tracing is not None:
            meter.trace = self.tracing.begin(scope, meter)
        CURRENT.set(meter)
        return meter

    def cells(self, route: str, domain: str, adapter: str) -> Cells:
        """The cells of a route, domain and adapter, all of which are registered names."""
        key = (route, domain, adapter)
        cells = self._cells.get(key)
        if cells is None:
            if len(self._cells) >= _MAX_CELLS:
                key = (OTHER, OTHER, OTHER)
            cells = self._cells.setdefault(key, Cells(Labels(*key)))
        return cells

    def note_limit(self, limit: str) -> None:
        """Notes which limit the request of this task met; it is counted when the request ends with 429."""
        meter = CURRENT.get()
        if meter is not None:
            meter.limit = limit

    def forget(self, adapter: str) -> None:
        """Drops the series of an adapter that is gone for good."""
        for key in [key for key in self._cells if key[2] == adapter]:
            del self._cells[key]

    def watch_aliases(self, promoted: Callable[[], Mapping[str, str | None]]) -> None:
        """Shows which adapter each alias points at, looked up at every scrape."""
        self.registry.register(_Aliases(promoted))


class _Aliases(Collector):
    def __init__(self, promoted: Callable[[], Mapping[str, str | None]]) -> None:
        self._promoted = promoted

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "preceptor_adapter_promoted", "1 for the adapter that an alias points at.", labels=["domain", "adapter"]
        )
        for domain, adapter in self._promoted().items():
            if adapter:
                gauge.add_metric([domain, adapter], 1)
        yield gauge
