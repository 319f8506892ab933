"""Reads the engine's chat stream and re-tells it as plain pieces of text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.wire import GenerateRequest

from preceptor_gateway.relay import error_event


def chat_body(request: GenerateRequest, served: str) -> dict[str, Any]:
    """The chat request that a prompt stands for."""
    body: dict[str, Any] = {
        "model": served,
        "messages": [{"role": "user", "content": request.prompt}],
        "temperature": request.temperature,
        "stream": True,
    }
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    return body


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def retell(chunks: AsyncIterator[bytes], request_id: str) -> AsyncIterator[bytes]:
    """Turns OpenAI chunks into `data: {"text": ...}` events, ends with `data: [DONE]`; errors pass as they are."""
    try:
        async for piece in _texts(chunks):
            yield piece
    except PreceptorError as error:
        yield error_event(error, request_id, b"\n")


async def _texts(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line.removeprefix(b"data:").strip()
            if payload == b"[DONE]":
                yield b"data: [DONE]\n\n"
                continue
            try:
                event = orjson.loads(payload)
            except orjson.JSONDecodeError:
                continue  # The half of an event that the engine broke off; the error event follows.
            if "error" in event:
                yield _event(event)
            elif event.get("choices") and (text := event["choices"][0]["delta"].get("content")):
                yield _event({"text": text})
