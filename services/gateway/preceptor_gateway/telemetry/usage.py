"""Reads how many tokens an answer took out of the engine's bytes, without decoding all of them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

_KEY = b'"usage"'
# What follows the key: an object with objects in it two levels deep, which is what vLLM and OpenAI send.
_FLAT = rb"[^{}]*"
_NESTED = rb"\{" + _FLAT + rb"(?:\{" + _FLAT + rb"\}" + _FLAT + rb")*\}"
_VALUE = re.compile(rb"\s*:\s*(\{" + _FLAT + rb"(?:" + _NESTED + _FLAT + rb")*\})")
# The rest of the outermost object, where it is simple enough to be sure that this is the outermost object: fields that
# are null, a number or a short text, and vLLM's `metrics`.
_SIMPLE = rb'(?:null|true|false|-?[0-9.eE+-]+|"[^"\\]{0,200}")'
_FIELD = rb'\s*"[a-z_]{1,40}"\s*:\s*'
_METRICS = rb'\s*"metrics"\s*:\s*(\{' + _FLAT + rb"\})"
_REST = re.compile(rb"(?:\s*,(?:" + _METRICS + rb"|" + _FIELD + _SIMPLE + rb"))*\s*\}\s*")
_BEFORE = frozenset(b"{, \t\r\n")
_SHORT = 4096
"""Bytes up to which decoding all costs no more than looking (1.6 us)."""


class Usage(NamedTuple):
    """What one answer took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens that were in the engine's prefix cache; vLLM leaves the field out where it is 0."""
    queue_s: float | None = None
    """Seconds in the engine's queue; None unless vLLM runs with `--enable-per-request-metrics`."""


def usage_of(answer: object) -> Usage | None:
    """Reads the usage of a decoded answer; None where it has none."""
    if not isinstance(answer, dict):
        return None
    return _usage(answer.get("usage"), answer.get("metrics"))


def find_usage(raw: bytes) -> Usage | None:
    """Reads the usage of a whole answer's bytes.

    A short answer is decoded, which orjson does in a microsecond. In a long one (log-probabilities make them so) it
    looks from the end and decodes only the `usage` object; where it cannot be sure that this is the answer's own, it
    decodes everything. `metrics` is seen behind `usage`, where vLLM writes it.
    """
    if len(raw) <= _SHORT:
        return _decoded(raw)
    at = raw.rfind(_KEY)
    if at < 0:
        # Spelled with an escape (`"\u0075sage"`) it would be missed; engines do not write keys so.
        return None
    # A quote that is escaped belongs to a text; only a quote behind one of these begins a key.
    if at and raw[at - 1] in _BEFORE and (value := _VALUE.match(raw, at + len(_KEY))):
        rest = _REST.fullmatch(raw, value.end())
        if rest:
            try:
                return _usage(orjson.loads(value[1]), orjson.loads(rest[1]) if rest[1] else None)
            except orjson.JSONDecodeError:
                pass
    return _decoded(raw)


def find_stream_usage(tail: bytes) -> Usage | None:
    """Reads the usage that a stream told last; None where its client did not ask for one.

    Args:
        tail: The end of the stream: at least its last two events.
    """
    at = tail.rfind(_KEY)
    if at < 0:
        return None
    # An event is one line, for JSON within it holds no bare line break.
    start, end = tail.rfind(b"\n", 0, at) + 1, tail.find(b"\n", at)
    return find_usage(tail[start : end if end >= 0 else len(tail)].removeprefix(b"data:"))


def _decoded(raw: bytes) -> Usage | None:
    try:
        return usage_of(orjson.loads(raw))
    except orjson.JSONDecodeError:
        return None


def _usage(usage: Any, metrics: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    waited = metrics.get("queue_time_ms") if isinstance(metrics, dict) else None
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        cached,
        waited / 1000 if isinstance(waited, int | float) and waited >= 0 else None,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
