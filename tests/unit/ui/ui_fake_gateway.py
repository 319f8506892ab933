"""A tiny gateway for the UI's tests: real HTTP on a loopback port, scripted by setting attributes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "test-key"
DISCLAIMER = "General information, not medical advice. In an emergency call your local emergency number."
EPIPEN = "This may be an emergency. Use an adrenaline auto-injector if you have one and call emergency services now."
DOMAINS = [
    {
        "name": "allergy",
        "title": "Allergy FAQ",
        "description": "Questions that patients ask about allergies, answered from a clinic's leaflet.",
        "disclaimer": DISCLAIMER,
        "examples": [
            "What is the difference between an allergy and an intolerance?",
            "How long before a skin test must I stop antihistamines?",
            "Can hay fever start in adulthood?",
        ],
        "has_mcq": True,
        "scoring": "letters",
        "promoted": "allergy-v1-1a2b3c4d",
    },
    {
        "name": "sql",
        "title": "SQL analyst",
        "description": "Turns a question about the shop's database into one query.",
        "disclaimer": "Read a query before you run it.",
        "examples": ["Which five customers spent most in 2024?"],
        "has_mcq": False,
        "scoring": None,
        "promoted": None,
    },
]
SERVED = ["sql", "sql:base", "allergy", "allergy:base", "allergy:allergy-v1-1a2b3c4d", "base"]
ANSWER = (
    "An **allergy** is a reaction of the immune system; an *intolerance* is not.\n\n"
    "- An allergy can be dangerous in small amounts.\n- An intolerance depends on the amount.\n\n"
    "```sql\nSELECT name FROM food WHERE histamine < 5;\n```\n"
)


def problem(status: int, message: str, *, hint: str = "", code: str = "some_code") -> Response:
    """Answers as the gateway does where it refuses."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error, "hint": hint, "request_id": "r1"}, status)


@dataclass
class FakeGateway:
    """The script and what was heard."""

    answer: str = ANSWER
    chunk_s: float = 0.0
    """Pause before each chunk, in seconds."""
    refusal: Callable[[], Response] | None = None
    """Answers every request in place of the routes below."""
    breaks_with: str | None = None
    """Raw SSE text sent in the middle of an answer, after which the stream ends."""
    is_endless: bool = False
    finish: str = "stop"
    mcq: dict[str, Any] = field(default_factory=dict)
    heard: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set when a client leaves before its answer is whole."""
    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        """Builds the ASGI app."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/domains", self._domains),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/submit_mcq", self._mcq, methods=["POST"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        self.keys.append(request.headers.get("authorization", ""))
        if self.refusal is not None:
            return self.refusal()
        if self.keys[-1] != f"Bearer {KEY}":
            return problem(401, "This key is not known.", code="invalid_api_key")
        return None

    async def _models(self, request: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "preceptor"} for name in SERVED]
        return self._refused(request) or JSONResponse({"object": "list", "data": listed})

    async def _domains(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"data": DOMAINS})

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.heard.append(body)
        question = body["messages"][-1]["content"]
        if "refuse" in question:
            return problem(503, "The engine is not ready.", hint="It starts in about a minute; send it again then.")
        safety = EPIPEN if "breathe" in question else ""
        headers = {"x-preceptor-safety": quote(safety)} if safety else {}
        return StreamingResponse(self._chunks(safety, question), media_type="text/event-stream", headers=headers)

    async def _chunks(self, safety: str, question: str) -> AsyncIterator[str]:
        try:
            yield sse({"role": "assistant", "content": ""})
            if safety:
                yield sse({"content": f"{safety}\n\n"})
            for position, word in enumerate(self.answer.split(" ")):
                await asyncio.sleep(self.chunk_s)
                yield sse({"content": word if position == 0 else f" {word}"})
                if position == 1 and self.breaks_with is not None:
                    yield self.breaks_with
                    return
                if position == 3 and "break" in question:
                    yield 'data: {"error": {"message": "The engine stopped."}, "hint": "Send it again."}\n\n'
                    return
            while self.is_endless or "endless" in question:
                await asyncio.sleep(0.02)
                yield sse({"content": " more"})
            yield sse({}, finish=self.finish)
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.hung_up.set()
            raise

    async def _mcq(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.heard.append(body)
        if len(body["choices"]) < 2:
            return problem(422, "choices holds 1 entries.", hint="Send 2 to 10 choices.", code="choices_count")
        labels = "ABCDEFGHIJ"[: len(body["choices"])]
        rest = 0.18 / (len(labels) - 1)
        answer = {
            "answer": "B",
            "choice": body["choices"][1],
            "probabilities": {label: 0.82 if label == "B" else rest for label in labels},
            "off_option_mass": 0.03,
            "margin": 0.82 - rest,
            "scoring": "letters",
            "served": body["model"],
            "adapter": None if body["model"].endswith("base") else "allergy-v1-1a2b3c4d",
            "domain": "allergy",
            "prompt_tokens": 120,
            "cached_tokens": None,
            "safety": [EPIPEN] if "breathe" in body["question"] else [],
            "disclaimer": DISCLAIMER,
            "request_id": "r2",
        }
        return JSONResponse(answer | self.mcq)


def sse(delta: dict[str, str], *, finish: str | None = None) -> str:
    """One chunk of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def html_error() -> Response:
    """What a proxy answers where no gateway is."""
    return PlainTextResponse("<html>Bad gateway</html>", 502)


class Running:
    """Serves a fake gateway from a thread; a context manager."""

    def __init__(self, gateway: FakeGateway) -> None:
        config = uvicorn.Config(gateway.app(), port=gateway.port, log_level="error", timeout_graceful_shutdown=1)
        self.gateway = gateway
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> FakeGateway:
        self.thread.start()
        deadline = time.monotonic() + 10
        while not self.server.started:
            assert time.monotonic() < deadline, "the fake gateway did not start"
            time.sleep(0.005)
        self.gateway.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self.gateway

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=5)


if __name__ == "__main__":
    uvicorn.run(FakeGateway(chunk_s=0.05).app(), port=int(sys.argv[1]), log_level="warning")
