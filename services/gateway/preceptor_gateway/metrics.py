"""Prometheus series with bounded label sets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The gateway's series. Labels come from routes, domains and registered adapters, never from clients."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "preceptor_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "preceptor_request_seconds",
            "Seconds until the last byte.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "preceptor_answers", "Answers asked for.", ["domain", "adapter", "kind"], registry=self.registry
        )
        self.first_byte = Histogram(
            "preceptor_first_byte_seconds",
            "Seconds until the engine's first byte.",
            ["domain", "adapter"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("preceptor_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.safety = Counter("preceptor_safety_rules", "Safety rules set off.", ["domain"], registry=self.registry)
        self.limited = Counter(
            "preceptor_limited_requests", "Requests refused by a key's limit.", ["limit"], registry=self.registry
        )
        self.limits_alone = Counter(
            "preceptor_limits_alone", "Counts that Redis should have taken and did not.", registry=self.registry
        )
        self.engine_up = Gauge("preceptor_engine_up", "1 where the engine answers.", registry=self.registry)
        self.adapter_ready = Gauge(
            "preceptor_adapter_ready", "1 where the canary passed.", ["domain", "adapter"], registry=self.registry
        )
        self.adapter_loads = Counter(
            "preceptor_adapter_loads", "Loads into the engine.", ["adapter", "outcome"], registry=self.registry
        )
