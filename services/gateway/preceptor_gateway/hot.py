"""The hot path: OpenAI's completion routes as plain ASGI, without a router's dependencies or response objects.

A body is parsed once, no database is touched, and the engine's bytes pass through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from preceptor_contracts.errors import PreceptorError
from starlette.types import Message, Receive, Scope, Send

from preceptor_gateway.auth import authorize
from preceptor_gateway.client_fields import parse_body
from preceptor_gateway.limits.context import check_context
from preceptor_gateway.limits.gate import ANSWER_TOKENS, estimate_tokens
from preceptor_gateway.privacy import note_prompt
from preceptor_gateway.problems import ClientLeft
from preceptor_gateway.relay import (
    JSON,
    SSE,
    Answer,
    EngineCall,
    banner_answer,
    banner_chunk,
    banner_stream,
    error_event,
    with_banner,
)
from preceptor_gateway.services import Services
from preceptor_gateway.telemetry.meter import RequestMeter

_PATIENCE_S = 0.05
Prepare = Callable[[Services, dict[str, Any]], EngineCall]


class HotRoute:
    """One POST route; `prepare` turns a client's body into the engine's, on memory only."""

    def __init__(self, path: str, prepare: Prepare) -> None:
        self.path = path
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        services: Services = scope["app"].state.services
        scope["route"] = self
        caller = authorize(services.keys.ring, scope)
        raw = await _body(receive)
        meter: RequestMeter = scope["meter"]
        meter.read()
        note_prompt(scope, raw, services.settings.log_prompts)
        call = self._prepare(services, parse_body(raw))
        scope["served"] = call.target.served
        meter.about(call.route, call.target.domain.name if call.target.domain else None, call.target.adapter)
        check_context(call.target.engine.context_tokens, call.max_tokens or None, call.prompt_chars)
        admission = await services.limiter.admit(caller, 0 if caller.unlimited else _estimate(call))
        scope["limit_headers"] = admission.headers
        # Until an engine has taken it.
        scope["tokens_used"] = 0
        try:
            await self._relay(services, call, scope, receive, send)
        finally:
            await admission.done(scope["tokens_used"])

    async def _relay(self, services: Services, call: EngineCall, scope: Scope, receive: Receive, send: Send) -> None:
        if call.silenced:
            body, kind = (banner_stream(call), SSE) if call.stream else (banner_answer(call), JSON)
            await _send_whole(send, call, body, kind)
            return
        with _Leaving(receive) as leaving:
            try:
                await _answer(services, call, scope, send, leaving)
            except asyncio.CancelledError:
                leaving.explain()
                if not leaving.answering:
                    raise ClientLeft("The client hung up before its answer was there.") from None
                scope["client_left"] = True


def _estimate(call: EngineCall) -> int:
    return estimate_tokens(call.prompt_chars, (call.max_tokens or ANSWER_TOKENS) * call.choices)


async def _answer(services: Services, call: EngineCall, scope: Scope, send: Send, leaving: _Leaving) -> None:
    answer = await services.relay.start(call)
    code = "interrupted"
    try:
        if call.stream:
            await send(_head(call, answer.content_type))
            leaving.answering = True
            code = await _stream(call, answer, scope, send)
        else:
            body = with_banner(call, await answer.read())
            leaving.answering = True
            await _send_whole(send, call, body, answer.content_type)
            code = ""
    finally:
        answer.close(code)
        scope["tokens_used"] = answer.tokens(call.prompt_chars)


async def _stream(call: EngineCall, answer: Answer, scope: Scope, send: Send) -> str:
    """Passes a stream on; returns the code of the error that it ended in, if any."""
    data, code, last = b"\n", "", b""
    if call.rules:
        await send({"type": "http.response.body", "body": banner_chunk(call), "more_body": True})
    try:
        while True:
            piece = await answer.chunk()
            if not piece:
                break
            data = piece
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except PreceptorError as error:
        code = error.code
        last = error_event(error, scope["request_id"], data)
    await send({"type": "http.response.body", "body": last, "more_body": False})
    return code


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientLeft("The client hung up before its request was whole.")
    return body


def _head(call: EngineCall, content_type: bytes, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type), *call.headers]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _send_whole(send: Send, call: EngineCall, body: bytes, content_type: bytes) -> None:
    await send(_head(call, content_type, len(body)))
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Leaving:
    """Cancels the task that answers when its client hangs up, which ends the engine's work too.

    It begins to watch after `_PATIENCE_S`: what ends sooner is not worth the task that watches.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self.answering = False
        """The status has been sent."""

    def __enter__(self) -> _Leaving:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._begin)
        return self

    def _begin(self) -> None:
        self._watch = asyncio.ensure_future(self._gone())

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._task.cancel()

    def explain(self) -> None:
        """Takes the cancellation back where it was ours; raises it again where somebody else wants the task ended."""
        if not (self._watch and self._watch.done()) or self._task.uncancel():
            raise asyncio.CancelledError

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._watch:
            self._watch.cancel()
