"""What one request costs part by part, in this process, without a socket: microseconds of CPU, best of several runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import orjson
import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from langchain_core.prompts import ChatPromptTemplate
from preceptor_contracts.domains import load_domains
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from bench.gateway.micro_apps import app as bare_app
from bench.gateway.upstream import whole_answer

App = Callable[..., Awaitable[None]]
REPEATS = 5
QUESTION = "How many patients live in Leeds?"
_PATH = "/v1/chat/completions"


class Cost(NamedTuple):
    """One line of a table."""

    part: str
    way: str
    us: float
    """Microseconds of CPU a call."""


def cost(part: str, way: str, call: Callable[[], object], seconds: float) -> Cost:
    """Calls in batches for about so many seconds; the best batch is the one that was disturbed least."""
    count = 1
    while _timed(call, count) < seconds / (REPEATS * 4) and count < 1_000_000:
        count *= 2
    return Cost(part, way, min(_timed(call, count) for _ in range(REPEATS)) / count * 1e6)


def _timed(call: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        call()
    return time.process_time() - began


# --- routing ---


def _scope() -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"authorization", b"Bearer sk-bench")]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": _PATH,
        "raw_path": _PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


async def _receive() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def _send(message: MutableMapping[str, Any]) -> None:
    return None


def _run(app: App) -> Callable[[], object]:
    """One request through an ASGI application, driven by hand: nothing in it waits."""

    def call() -> None:
        coroutine = app(_scope(), _receive, _send)
        try:
            coroutine.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return
        raise RuntimeError("The application waited for something.")

    return call


def _fastapi(*, with_dependencies: bool, routers: int = 6) -> FastAPI:
    """A route among as many routers as the gateway has; dependencies as its chat route has them."""
    bearer = HTTPBearer(auto_error=False)

    async def require_key(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> frozenset[str]:
        return frozenset({"use"})

    async def services(request: Request) -> object:
        return request.app

    app = FastAPI()
    answer = whole_answer()
    router = APIRouter(prefix="/v1", dependencies=[Depends(require_key)] if with_dependencies else [])
    if with_dependencies:

        @router.post("/chat/completions")
        async def asked(request: Request, parts: Annotated[object, Depends(services)]) -> Response:
            await request.body()
            return Response(answer, media_type="application/json")
    else:

        @router.post("/chat/completions")
        async def plain(request: Request) -> Response:
            await request.body()
            return Response(answer, media_type="application/json")

    for number in range(routers - 1):
        app.add_api_route(f"/other/{number}", services)
    app.include_router(router)
    return app


def _starlette() -> Starlette:
    answer = whole_answer()

    async def asked(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route(_PATH, asked, methods=["POST"])])


def routing(seconds: float) -> list[Cost]:
    """From the server's call to the answer's last message."""
    apps: dict[str, App] = {
        "bare ASGI function": bare_app,
        "Starlette route": _starlette(),
        "FastAPI route": _fastapi(with_dependencies=False),
        "FastAPI route, bearer key and services by dependency": _fastapi(with_dependencies=True),
    }
    return [cost("routing", name, _run(app), seconds) for name, app in apps.items()]


# --- JSON ---


def json_parts(seconds: float) -> list[Cost]:
    """A request's body in and out, with a system prompt of 1,200 characters."""
    messages = [{"role": "system", "content": "Answer in SQL. " * 80}, {"role": "user", "content": QUESTION}]
    body = {"model": "base", "messages": messages, "temperature": 0, "max_tokens": 256}
    raw = orjson.dumps(body)
    return [
        cost("parse the body", "json", lambda: json.loads(raw), seconds),
        cost("parse the body", "orjson", lambda: orjson.loads(raw), seconds),
        cost("write the body", "json", lambda: json.dumps(body).encode(), seconds),
        cost("write the body", "orjson", lambda: orjson.dumps(body), seconds),
    ]


# --- prompt ---


def prompt_parts(domains: Path, seconds: float) -> list[Cost]:
    """A domain's system message: template made per request, made once, and formatted once."""
    system = load_domains(domains)["sql"].domain.system

    def anew() -> object:
        template = ChatPromptTemplate.from_messages([("system", system), ("human", "{question}")])
        return template.format_messages(question=QUESTION)

    once = ChatPromptTemplate.from_messages([("system", system), ("human", "{question}")])
    text = str(once.format_messages(question=QUESTION)[0].content)
    return [
        cost("domain prompt", "template parsed and formatted per request", anew, seconds),
        cost("domain prompt", "template parsed once", lambda: once.format_messages(question=QUESTION), seconds),
        cost("domain prompt", "text formatted once, joined", lambda: "\n\n".join([text, QUESTION]), seconds),
    ]


# --- what every request does besides ---


def edge_parts(seconds: float) -> list[Cost]:
    """Key, request id, series, log line."""
    known = hashlib.sha256(b"sk-bench").digest()
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests.", ["route", "status"], registry=registry)
    histogram = Histogram("seconds", "Seconds.", ["route"], registry=registry)
    child, bars = counter.labels(_PATH, "200"), histogram.labels(_PATH)
    sink = io.StringIO()
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    line = structlog.wrap_logger(structlog.PrintLogger(sink), processors=processors, wrapper_class=wrapper)
    cached = line.bind()
    fields = {"request_id": "0" * 32, "method": "POST", "path": _PATH, "status": 200, "ms": 1.2, "served": "sql:base"}

    def by_hand() -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        sink.write(orjson.dumps({**fields, "event": "request", "timestamp": stamp}).decode() + "\n")

    return [
        cost(
            "key",
            "sha256 and compare",
            lambda: hmac.compare_digest(hashlib.sha256(b"sk-bench").digest(), known),
            seconds,
        ),
        cost("key", "found in a dict by its text", lambda: {"sk-bench": 1}.get("sk-bench"), seconds),
        cost("request id", "uuid4", lambda: uuid.uuid4().hex, seconds),
        cost("request id", "os.urandom(16).hex()", lambda: __import__("os").urandom(16).hex(), seconds),
        cost("counter", "labels() each time", lambda: counter.labels(_PATH, "200").inc(), seconds),
        cost("counter", "child kept", child.inc, seconds),
        cost("histogram", "labels() each time", lambda: histogram.labels(_PATH).observe(0.01), seconds),
        cost("histogram", "child kept", lambda: bars.observe(0.01), seconds),
        cost("log line", "structlog, JSON", lambda: line.info("request", **fields), seconds),
        cost("log line", "structlog, JSON, logger bound once", lambda: cached.info("request", **fields), seconds),
        cost("log line", "orjson by hand", by_hand, seconds),
    ]


def tasks(seconds: float) -> list[Cost]:
    """What a task, a future and a time-out cost: each stands in some path of a server or client."""
    loop = asyncio.new_event_loop()

    async def nothing() -> None:
        return None

    async def many(make: Callable[[], Awaitable[object]]) -> float:
        count = 20_000
        began = time.process_time()
        for _ in range(count):
            await make()
        return (time.process_time() - began) / count * 1e6

    async def timed() -> None:
        async with asyncio.timeout(5):
            await nothing()

    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "await a coroutine": nothing,
        "asyncio.create_task": lambda: asyncio.create_task(nothing()),
        "asyncio.timeout": timed,
        "asyncio.wait_for": lambda: asyncio.wait_for(nothing(), 5),
    }
    try:
        return [
            Cost("event loop", name, min(loop.run_until_complete(many(way)) for _ in range(REPEATS)))
            for name, way in ways.items()
        ]
    finally:
        loop.close()


def all_parts(domains: Path, seconds: float = 0.5) -> list[Cost]:
    """Every part, in the order of a request."""
    parts = [*routing(seconds), *json_parts(seconds), *prompt_parts(domains, seconds)]
    return [*parts, *edge_parts(seconds), *tasks(seconds)]
