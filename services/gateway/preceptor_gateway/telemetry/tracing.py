"""OpenTelemetry traces of requests, over OTLP and HTTP. Imported only where a collector is named.

A request's span has two children: the gateway's own work (`render`) and the engine's. The engine gets the trace by W3C
headers and adds spans of its own where it traces too. Names follow OpenTelemetry's conventions for HTTP and GenAI.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from preceptor_contracts.errors import PrerequisiteError
from starlette.types import Scope

from preceptor_gateway.telemetry.cells import NONE, Cells
from preceptor_gateway.telemetry.usage import Usage

if TYPE_CHECKING:
    from preceptor_gateway.settings import GatewaySettings
    from preceptor_gateway.telemetry.meter import RequestMeter

_W3C = TraceContextTextMapPropagator()
_HEADERS = (b"traceparent", b"tracestate")
_GIVE_UP_S = 0.2
_OPERATIONS = {"/v1/completions": "text_completion"}
_ASKED = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
}


class Tracing:
    """The process's tracer. A thread of its own sends spans in batches; where it cannot keep up, spans are lost."""

    def __init__(self, settings: GatewaySettings) -> None:
        url = settings.otel_endpoint.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise PrerequisiteError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is {settings.otel_endpoint!r}.",
                hint="Name an OTLP collector's HTTP address, e.g. http://localhost:4318, or leave it empty.",
            )
        headers = _pairs(settings.otel_headers.get_secret_value())
        self._exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", headers=headers or None)
        resource = Resource.create({SERVICE_NAME: settings.otel_service_name})
        # Not the global provider: langsmith and others look for that one and would send their spans here.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(self._exporter)
        self._provider.add_span_processor(self._processor)
        self.tracer: Tracer = self._provider.get_tracer("preceptor_gateway")
        self.with_prompts = settings.log_prompts
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def begin(self, scope: Scope, meter: RequestMeter) -> RequestSpans:
        """Begins a request's span, below the client's where it sent a `traceparent`."""
        return RequestSpans(self, scope, meter)

    def at(self, seconds: float) -> int:
        """A time of `perf_counter` as OpenTelemetry tells it."""
        return self._epoch_ns + int(seconds * 1e9)

    def flush(self) -> None:
        """Sends what is waiting; returns when it is sent or given up."""
        self._processor.force_flush()

    async def close(self, patience_s: float = 2.0) -> None:
        """Sends the last spans if the collector takes them soon, and ends; a dead one must not hold the gateway."""
        # A daemon, because the process would wait for any other thread; its own patience is 30 s.
        last = threading.Thread(target=self._processor.shutdown, daemon=True)
        last.start()
        await asyncio.to_thread(last.join, patience_s)
        if last.is_alive():
            # Ends the pauses between tries; a try that hangs ends by its own time-out.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the exporter's method has no types
            await asyncio.to_thread(last.join, _GIVE_UP_S)


class RequestSpans:
    """One request's span and what hangs below it."""

    __slots__ = ("_context", "_method", "_owner", "_span", "trace_id")

    def __init__(self, owner: Tracing, scope: Scope, meter: RequestMeter) -> None:
        self._owner = owner
        self._method = str(scope.get("method", ""))
        carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        self._span = owner.tracer.start_span(
            self._method,
            context=_W3C.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=owner.at(meter.started),
            attributes={"http.request.method": self._method, "preceptor.request_id": meter.request_id},
        )
        self._context = set_span_in_context(self._span)
        self.trace_id = format_trace_id(self._span.get_span_context().trace_id)

    def call(self, meter: RequestMeter, cells: Cells, served: str, body: bytes, at: float) -> CallSpan:
        """Begins the engine's span, and tells how long the gateway had worked before it."""
        owner = self._owner
        if meter.read_at:
            render = owner.tracer.start_span("render", context=self._context, start_time=owner.at(meter.read_at))
            render.end(owner.at(at))
            meter.read_at = 0.0
        if not self._span.is_recording():
            return CallSpan(owner, self._span, last=False)
        operation = _OPERATIONS.get(cells.labels.route, "chat")
        span = owner.tracer.start_span(
            f"{operation} {served}".rstrip(),
            context=self._context,
            kind=SpanKind.CLIENT,
            start_time=owner.at(at),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": served,
                "preceptor.domain": cells.labels.domain,
                "preceptor.adapter": cells.labels.adapter,
                **_asked(body, with_prompts=owner.with_prompts),
            },
        )
        return CallSpan(owner, span, last=True)

    def end(self, meter: RequestMeter, status: int, code: str, at: float) -> None:
        """Ends the request's span."""
        span = self._span
        route = meter.route
        if route != NONE:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if code:
            span.set_attribute("error.type", code)
        if status >= 500 or (code and status < 400):
            span.set_status(StatusCode.ERROR, code)
        span.end(self._owner.at(at))


class CallSpan:
    """One call of the engine."""

    __slots__ = ("_last", "_owner", "_span", "headers")

    def __init__(self, owner: Tracing, span: Span, *, last: bool) -> None:
        self._owner = owner
        self._span = span
        self._last = last
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, context=set_span_in_context(span))
        self.headers = b"".join(
            f"{name}: {value}\r\n".encode("ascii") for name, value in carrier.items() if value.isascii()
        )

    def first(self, at: float) -> None:
        """Notes the first piece of a stream."""
        self._span.add_event("first_token", timestamp=self._owner.at(at))

    def end(self, usage: Usage | None, chunks: int, code: str, answer: bytes) -> None:
        """Ends the span with what the answer took."""
        if not self._last:
            return
        span = self._span
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        if chunks:
            span.set_attribute("preceptor.stream.chunks", chunks)
        if answer and self._owner.with_prompts:
            span.set_attribute("gen_ai.output.messages", _told(answer))
        if code:
            span.set_attribute("error.type", code)
            span.set_status(StatusCode.ERROR, code)
        span.end()


def _asked(body: bytes, *, with_prompts: bool) -> dict[str, Any]:
    """What a request's body says about itself, and the words of it only where that is allowed."""
    asked = _object(body)
    told: dict[str, Any] = {
        name: asked[field] for field, name in _ASKED.items() if isinstance(asked.get(field), bool | int | float)
    }
    if "model" in asked:
        told["preceptor.engine_name"] = str(asked["model"])
    if with_prompts:
        messages = asked.get("messages") or [{"role": "user", "content": asked.get("prompt", "")}]
        told["gen_ai.input.messages"] = orjson.dumps([_message(one) for one in messages]).decode()
    return told


def _told(answer: bytes) -> str:
    choices = _object(answer).get("choices", ())
    return orjson.dumps(
        [_message(one.get("message") or {"role": "assistant", "content": one.get("text")}) for one in choices]
    ).decode()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return {"role": message.get("role"), "parts": [{"type": "text", "content": text}]}


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        value = {}
    return value if isinstance(value, dict) else {}


def _pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if any(not name.strip() or not sign for name, sign, _ in pairs):
        raise PrerequisiteError("OTEL_EXPORTER_OTLP_HEADERS cannot be read.", hint="Write it as name=value,name=value.")
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}
