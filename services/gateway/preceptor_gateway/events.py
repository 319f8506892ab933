"""Server-sent events: the engine's are read, ours are written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
EVENT_STREAM: Json = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event. The last is `[DONE]`, or an error of the one shape.",
            "required": ["data"],
            "properties": {"data": {"type": "string", "description": "JSON, or `[DONE]`."}},
        }
    }
}
"""How a stream of events stands in the OpenAPI document."""


def write_event(value: Json) -> bytes:
    """Spells one event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Json | None]:
    """Yields each event's object, and None for `[DONE]`; the half of an event that broke off is dropped."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line.removeprefix(b"data:").strip()
            if payload == b"[DONE]":
                yield None
                continue
            try:
                event = orjson.loads(payload)
            except orjson.JSONDecodeError:
                continue
            yield event


def text_of(event: Json) -> str:
    """The piece of answer in a chat completion chunk; empty where it carries none."""
    choices = event.get("choices")
    return str(choices[0]["delta"].get("content") or "") if choices else ""
