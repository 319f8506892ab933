"""What may stand in the log: ids, never keys; prompts only where LOG_PROMPTS says so."""

from __future__ import annotations

import traceback
from typing import Any

from starlette.types import Scope

from preceptor_gateway.keys.callers import Caller
from preceptor_gateway.keys.secret import without_keys

_LONGEST = 16_384
"""Bytes of a body that are logged, where prompts are."""


def note_prompt(scope: Scope, body: bytes, enabled: bool) -> None:
    """Keeps a request's body for its log line, where LOG_PROMPTS says so; else it keeps nothing."""
    if enabled and body:
        scope["prompt"] = body[:_LONGEST]


def log_fields(scope: Scope) -> dict[str, Any]:
    """What a request's log line says beyond method and status: the path without keys, who asked, and maybe what."""
    caller: Caller | None = scope.get("caller")
    fields: dict[str, Any] = {"path": without_keys(scope["path"]), "key": caller.key_id if caller else None}
    if "prompt" in scope:
        fields["prompt"] = without_keys(scope["prompt"].decode(errors="replace"))
    return fields


def traceback_of(error: BaseException, with_messages: bool = False) -> str:
    """A traceback of frames and types. What an error says may quote a prompt, so it is left out unless wanted."""
    if with_messages:
        return without_keys("".join(traceback.format_exception(error)))
    parts: list[str] = []
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        frames = "".join(traceback.format_tb(link.__traceback__))
        parts.append(f"{frames}{type(link).__module__}.{type(link).__qualname__}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n\nwhich came of\n\n".join(parts)
