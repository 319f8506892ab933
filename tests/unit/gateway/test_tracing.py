"""Traces: what leaves, what must not, and that a collector that is dead or deaf costs no request anything."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from preceptor_contracts.errors import PrerequisiteError
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.telemetry.switch import start_tracing
from preceptor_gateway.telemetry.tracing import Tracing
from starlette.requests import Request

from tests.fakes.engine import FakeEngine
from tests.fakes.otlp import Collector, attributes, collector
from tests.unit.gateway.conftest import StackMaker

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BODY = json.dumps(
    {
        "model": "clinic-v1-00000001",
        "temperature": 0,
        "stream": True,
        "messages": [{"role": "user", "content": "S3cret"}],
    }
).encode()
RAW = (
    b'{"choices":[{"message":{"role":"assistant","content":"Wh1sper"}}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2}}'
)
Start = Callable[..., Metrics]


def settings(**values: object) -> GatewaySettings:
    return GatewaySettings(_env_file=None, **values)  # type: ignore[arg-type]  # test values by name


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Tracing] = []

    def make(url: str, **more: object) -> Metrics:
        metrics = Metrics()
        metrics.tracing = start_tracing(settings(OTEL_EXPORTER_OTLP_ENDPOINT=url, **more))
        assert metrics.tracing is not None
        started.append(metrics.tracing)
        return metrics

    yield make
    for tracing in started:
        asyncio.run(tracing.close(0.1))


def wait_for(kept: Collector, count: int) -> list[Any]:
    deadline = time.monotonic() + 10
    while len(kept.spans) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(kept.spans) == count
    return kept.spans


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "headers": [(b"authorization", b"Bearer k3y"), *headers]}


def one_stream(metrics: Metrics, *headers: tuple[bytes, bytes]) -> bytes:
    meter = metrics.begin(scope(*headers), "an-id")
    meter.read()
    call = meter.call("/v1/chat/completions", "clinic", "clinic-v1-00000001", "clinic", BODY)
    call.chunk(b'data: {"choices":[{"delta":{"content":"Wh1sper"}}]}\n\n')
    call.chunk(b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n')
    call.end()
    meter.done(200)
    return call.headers


def test_a_request_leaves_three_spans_below_the_clients(start: Start) -> None:
    with collector() as kept:
        sent = one_stream(start(kept.url), (b"traceparent", TRACEPARENT.encode()), (b"tracestate", b"vendor=1"))
        request, render, engine = wait_for(kept, 3)
    assert [one.name for one in (request, render, engine)] == ["POST /v1/chat/completions", "render", "chat clinic"]
    assert {one.trace_id.hex() for one in (request, render, engine)} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert render.parent_span_id == engine.parent_span_id == request.span_id
    # The engine's spans hang below the one that asked it.
    lines = dict(line.split(": ") for line in sent.decode().split("\r\n") if line)
    assert lines == {"traceparent": f"00-{TRACE}-{engine.span_id.hex()}-01", "tracestate": "vendor=1"}
    assert sent.endswith(b"\r\n")
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["preceptor.request_id"] == "an-id"
    asked = attributes(engine)
    assert asked["gen_ai.operation.name"] == "chat"
    assert asked["gen_ai.request.model"] == "clinic"
    assert asked["preceptor.adapter"] == "clinic-v1-00000001"
    assert asked["gen_ai.request.temperature"] == 0
    assert (asked["gen_ai.usage.input_tokens"], asked["gen_ai.usage.output_tokens"]) == (5, 2)
    assert [event.name for event in engine.events] == ["first_token"]
    assert request.start_time_unix_nano <= engine.start_time_unix_nano <= engine.events[0].time_unix_nano
    assert engine.events[0].time_unix_nano <= engine.end_time_unix_nano <= request.end_time_unix_nano + 1_000_000
    assert abs(request.start_time_unix_nano / 1e9 - time.time()) < 30


def test_no_word_of_a_prompt_and_no_key_leaves(start: Start) -> None:
    with collector() as kept:
        metrics = start(kept.url)
        one_stream(metrics)
        meter = metrics.begin(scope(), "an-id")
        meter.call("/v1/chat/completions", "clinic", None, "clinic:base", BODY).answered(RAW)
        meter.done(200)
        wait_for(kept, 5)
        sent = b"".join(body for _, _, body in kept.bodies)
    assert b"clinic:base" in sent
    for word in (b"S3cret", b"Wh1sper", b"k3y"):
        assert word not in sent


def test_words_leave_where_that_is_wanted(start: Start) -> None:
    with collector() as kept:
        metrics = start(kept.url, LOG_PROMPTS=True)
        meter = metrics.begin(scope(), "an-id")
        meter.call("/v1/chat/completions", "clinic", None, "clinic:base", BODY).answered(RAW)
        meter.done(200)
        _, engine = wait_for(kept, 2)
    told = attributes(engine)
    assert json.loads(told["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "S3cret"}]
    assert json.loads(told["gen_ai.output.messages"])[0]["parts"][0]["content"] == "Wh1sper"


def test_failures_are_marked(start: Start) -> None:
    with collector() as kept:
        metrics = start(kept.url)
        meter = metrics.begin(scope(), "an-id")
        meter.call("/v1/chat/completions", "clinic", None, "clinic:base", BODY).end("engine_down")
        meter.done(503, "engine_down")
        metrics.begin(scope(), "an-id").done(404, "unknown_served_name", "/v1/chat/completions")
        request, engine, refused = wait_for(kept, 3)
    assert [one.status.code for one in (request, engine, refused)] == [2, 2, 0]
    assert attributes(engine)["error.type"] == "engine_down"
    assert attributes(refused)["error.type"] == "unknown_served_name"


@pytest.mark.parametrize("header", [b"nonsense", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff\x00", b""])
def test_a_broken_traceparent_begins_a_new_trace(start: Start, header: bytes) -> None:
    with collector() as kept:
        one_stream(start(kept.url), (b"traceparent", header), (b"tracestate", b"\xff\r\n=1"))
        request, *_ = wait_for(kept, 3)
    assert request.parent_span_id == b""
    assert any(request.trace_id)


def test_a_client_that_says_unsampled_is_not_traced_but_passed_on(start: Start) -> None:
    with collector() as kept:
        sent = one_stream(start(kept.url), (b"traceparent", TRACEPARENT.encode()[:-2] + b"00"))
        time.sleep(0.2)
        assert kept.spans == []
    assert sent.startswith(f"traceparent: 00-{TRACE}-".encode())
    assert sent.rstrip().endswith(b"-00")


def test_headers_and_name_of_the_service_are_sent(start: Start) -> None:
    with collector() as kept:
        one_stream(start(kept.url, OTEL_EXPORTER_OTLP_HEADERS="x-token=a%20b, y=2", OTEL_SERVICE_NAME="mine"))
        wait_for(kept, 3)
        headers = kept.bodies[0][1]
        resource = kept.resource
    assert (headers["x-token"], headers["y"]) == ("a b", "2")
    assert resource["service.name"] == "mine"


@pytest.mark.parametrize(
    "values",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "token"},
    ],
)
def test_settings_that_cannot_be_read_are_told(values: dict[str, str]) -> None:
    with pytest.raises(PrerequisiteError, match="OTEL_EXPORTER_OTLP_"):
        start_tracing(settings(**values))


@pytest.mark.parametrize("stream", [False, True])
def test_the_gateway_traces_its_requests(make_stack: StackMaker, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    seen: list[str] = []
    read = FakeEngine._read

    async def reading(self: FakeEngine, request: Request) -> dict[str, Any]:
        seen.append(request.headers.get("traceparent", ""))
        return await read(self, request)

    monkeypatch.setattr(FakeEngine, "_read", reading)
    with collector() as kept:
        stack = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT=kept.url)
        body = {"model": "clinic:base", "stream": stream, "messages": [{"role": "user", "content": "S3cret"}]}
        stack.use.post("/v1/chat/completions", json=body, headers={"traceparent": TRACEPARENT}).raise_for_status()
        deadline = time.monotonic() + 10
        while len(spans := [one for one in kept.spans if one.trace_id.hex() == TRACE]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert b"S3cret" not in b"".join(body for _, _, body in kept.bodies)
    request, render, engine = spans
    assert [one.name for one in spans] == ["POST /v1/chat/completions", "render", "chat clinic:base"]
    assert request.parent_span_id.hex() == PARENT
    assert attributes(request)["http.route"] == "/v1/chat/completions"
    assert render.parent_span_id == engine.parent_span_id == request.span_id
    assert seen[-1] == f"00-{TRACE}-{engine.span_id.hex()}-01"
    assert [event.name for event in engine.events] == ["first_token"] * stream


def test_a_dead_collector_costs_no_request_anything(make_stack: StackMaker) -> None:
    dead = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    for _ in range(3):
        dead.chat("base").raise_for_status()
    slowest = 0.0
    for _ in range(100):
        began = time.perf_counter()
        assert dead.chat("base").status_code == 200
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1.0


async def test_no_thread_is_left_behind_a_dead_collector() -> None:
    before = set(threading.enumerate())
    tracing = start_tracing(settings(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"))
    assert tracing is not None
    metrics = Metrics()
    metrics.tracing = tracing
    one_stream(metrics)
    await asyncio.sleep(0.2)
    await tracing.close(0.1)
    assert [one.name for one in set(threading.enumerate()) - before if "asyncio" not in one.name] == []


async def test_a_deaf_collector_does_not_hold_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        tracing = start_tracing(settings(OTEL_EXPORTER_OTLP_ENDPOINT=url))
        assert tracing is not None
        metrics = Metrics()
        metrics.tracing = tracing
        began = time.perf_counter()
        for _ in range(3000):
            one_stream(metrics)
        spent = time.perf_counter() - began
        began = time.perf_counter()
        await tracing.close()
        assert time.perf_counter() - began < 4
    # More spans than the queue holds; what does not fit is dropped, nobody waits.
    assert spent < 10


def test_without_a_collector_nothing_of_ours_imports_opentelemetry() -> None:
    # langchain-core imports langsmith, and langsmith imports OpenTelemetry's SDK where it is installed; the exporter
    # and our own module are what must stay away.
    program = """
import sys
from preceptor_gateway.app import create_app
from preceptor_gateway.settings import GatewaySettings
create_app(GatewaySettings(_env_file=None, api_key="a", admin_key="b"))
print([name for name in sys.modules if name == "preceptor_gateway.telemetry.tracing" or "otlp" in name])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
