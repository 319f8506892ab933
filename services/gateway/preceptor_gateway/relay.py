"""A prepared request goes to an engine, and its answer comes back with its bytes untouched."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import quote

import orjson
from preceptor_contracts.domains import SafetyRule
from preceptor_contracts.errors import PreceptorError

from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.domains.service import Target
from preceptor_gateway.engine import EnginePool, EngineReply
from preceptor_gateway.engine.client import EngineLostAdapter, EngineNotReached
from preceptor_gateway.limits.gate import estimate_tokens
from preceptor_gateway.problems import body_of
from preceptor_gateway.telemetry.meter import CURRENT, CallMeter

SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class EngineCall:
    """A request that is ready for an engine."""

    target: Target
    path: str
    """The engine's route."""
    route: str
    """Ours, as a template."""
    body: bytes
    stream: bool
    prompt_chars: int = 0
    """Length of the prompt, in characters; the domain's own text counts."""
    max_tokens: int = 0
    """Longest answer asked for, in tokens; 0 where nobody said."""
    choices: int = 1
    """How many answers the client asked for."""
    rules: tuple[SafetyRule, ...] = ()
    """Safety rules that the question set off."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers that tell every client what answered and what was set off."""
        headers = [(b"x-preceptor-served", self.target.served.encode())]
        if self.target.adapter:
            headers.append((b"x-preceptor-adapter", self.target.adapter.encode()))
        if self.rules:
            headers.append((b"x-preceptor-safety", quote(self.banner.strip()).encode()))
        return headers

    @property
    def banner(self) -> str:
        """What must be read before the answer; empty where no rule was set off."""
        return "".join(f"{rule.message}\n\n" for rule in self.rules)

    @property
    def silenced(self) -> bool:
        """True where a rule's message is the whole answer, so that no engine is asked."""
        return any(rule.instead for rule in self.rules)


class Answer:
    """An engine's answer on its way to the client, counted as it passes. `close` it in every case."""

    __slots__ = ("_meter", "_reply", "content_type")

    def __init__(self, reply: EngineReply, meter: CallMeter | None) -> None:
        self._reply = reply
        self._meter = meter
        self.content_type = reply.content_type

    async def read(self) -> bytes:
        """The whole body."""
        raw = await self._reply.read()
        if self._meter:
            self._meter.answered(raw)
        return raw

    async def chunk(self) -> bytes:
        """The next bytes as they arrive; empty at the end."""
        data = await self._reply.chunk()
        if data and self._meter:
            self._meter.chunk(data)
        return data

    async def chunks(self) -> AsyncIterator[bytes]:
        """Every piece as it arrives."""
        while data := await self.chunk():
            yield data

    def close(self, code: str = "") -> None:
        """Ends the exchange; early, that ends the engine's work. `code` says what went wrong."""
        try:
            if self._meter:
                self._meter.end(code)
        finally:
            self._reply.close()

    def tokens(self, prompt_chars: int) -> int | None:
        """Tokens of prompt and answer: the engine's own count, an estimate where a stream did not tell, or None."""
        if self._meter is None:
            return None
        usage = self._meter.usage
        if usage is not None:
            return usage.prompt_tokens + usage.completion_tokens
        return estimate_tokens(prompt_chars, self._meter.completion_tokens)


class Relay:
    """Starts calls and carries answers."""

    def __init__(self, adapters: AdapterService, pool: EnginePool) -> None:
        self._adapters = adapters
        self._pool = pool

    async def start(self, call: EngineCall) -> Answer:
        """Sends the request; returns when the engine's head is there. `close` the answer.

        Raises:
            GatewayError: No engine answers it.
        """
        target = call.target
        request = CURRENT.get()
        meter = None
        if request is not None:
            domain = target.domain.name if target.domain else None
            meter = request.call(call.route, domain, target.adapter, target.served, call.body)
        try:
            reply = await self._ask(call, meter.headers if meter else b"")
        except BaseException as error:
            if meter:
                meter.end(error.code if isinstance(error, PreceptorError) else "interrupted")
            raise
        return Answer(reply, meter)

    async def _ask(self, call: EngineCall, more: bytes) -> EngineReply:
        """Asks an engine, and one other where that one gave no byte of an answer or has lost the adapter."""
        target = call.target
        try:
            return await target.engine.start(call.path, call.body, more)
        except EngineNotReached:
            other = self._pool.elsewhere(target.engine, target.adapter)
            if other is None:
                raise
        except EngineLostAdapter:
            if target.adapter is None:
                raise
            self._adapters.lost(target.adapter, target.engine)
            if not self._pool.has_ready(target.adapter):
                raise
            other = self._pool.pick(target.adapter)
        return await other.start(call.path, call.body, more)

    async def whole(self, call: EngineCall) -> bytes:
        """The complete answer, the engine's bytes unless a safety message must come first."""
        if call.silenced:
            return banner_answer(call)
        answer = await self.start(call)
        try:
            raw = await answer.read()
        finally:
            answer.close()
        return with_banner(call, raw)

    async def open(
        self, call: EngineCall, stack: AsyncExitStack, note_tokens: Callable[[int | None], None]
    ) -> AsyncIterator[bytes]:
        """Starts a streamed call; returns its pieces. Closing the stack early ends the engine's work.

        Args:
            call: What to ask.
            stack: Left when the stream is over.
            note_tokens: Told in the end how many tokens prompt and answer were.
        """
        if call.silenced:
            return _once(banner_stream(call))
        answer = await self.start(call)
        stack.callback(lambda: note_tokens(answer.tokens(call.prompt_chars)))
        stack.callback(answer.close)
        return self._pieces(call, answer, stack)

    async def _pieces(self, call: EngineCall, answer: Answer, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        async with stack:
            if call.rules:
                yield banner_chunk(call)
            while data := await answer.chunk():
                yield data


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def with_banner(call: EngineCall, raw: bytes) -> bytes:
    """An engine's whole answer with the safety messages before its text."""
    if not call.rules:
        return raw
    answer = orjson.loads(raw)
    for choice in answer["choices"]:
        choice["message"]["content"] = call.banner + (choice["message"].get("content") or "")
    return orjson.dumps(answer)


def _shell(call: EngineCall, kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-safety", "object": kind, "created": int(time.time()), "model": call.target.engine_name}


def banner_chunk(call: EngineCall, finish: str | None = None) -> bytes:
    """The safety messages as a stream's first event."""
    delta = {"role": "assistant", "content": call.banner}
    choices = [{"index": index, "delta": delta, "finish_reason": finish} for index in range(call.choices)]
    return b"data: " + orjson.dumps({**_shell(call, "chat.completion.chunk"), "choices": choices}) + b"\n\n"


def banner_stream(call: EngineCall) -> bytes:
    """The safety messages as a whole stream."""
    return banner_chunk(call, "stop") + b"data: [DONE]\n\n"


def banner_answer(call: EngineCall) -> bytes:
    """The safety messages as a whole answer."""
    message = {"role": "assistant", "content": call.banner.strip()}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"} for index in range(call.choices)
    ]
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return orjson.dumps({**_shell(call, "chat.completion"), "choices": choices, "usage": usage})


def error_event(error: PreceptorError, request_id: str, before: bytes) -> bytes:
    """An error as a stream's last event: its status is sent already.

    Args:
        error: What went wrong.
        request_id: The request's id.
        before: The piece that was sent last; an event that broke off in it is ended first.
    """
    gap = b"" if before.endswith(b"\n") else b"\n\n"
    return gap + b"data: " + orjson.dumps(body_of(error, request_id).model_dump()) + b"\n\n"
