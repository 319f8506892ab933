"""Puts the request's id, and its trace's, into every log line that is written while a request is answered."""

from __future__ import annotations

from structlog.typing import EventDict, WrappedLogger

from preceptor_gateway.telemetry.meter import CURRENT


def add_request(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """A structlog processor; lines outside of a request stay as they are."""
    meter = CURRENT.get()
    if meter is not None:
        event.setdefault("request_id", meter.request_id)
        if meter.trace is not None:
            event.setdefault("trace_id", meter.trace.trace_id)
    return event
