"""Traces are on where a collector is named. Only then is OpenTelemetry imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preceptor_gateway.settings import GatewaySettings
    from preceptor_gateway.telemetry.tracing import Tracing


def start_tracing(settings: GatewaySettings) -> Tracing | None:
    """Starts to trace, or returns None where no collector is named.

    Raises:
        PrerequisiteError: The collector's address or headers cannot be read.
    """
    if not settings.otel_endpoint:
        return None
    from preceptor_gateway.telemetry.tracing import Tracing

    return Tracing(settings)
