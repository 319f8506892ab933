"""Counts multiple choice as one call of the engine per request, however many prefills it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from preceptor_contracts.errors import PreceptorError

from preceptor_gateway.domains.service import Target
from preceptor_gateway.telemetry.meter import CURRENT
from preceptor_gateway.telemetry.usage import Usage


@dataclass
class Tally:
    """What a request took; filled in by whoever answers it."""

    prompt_tokens: int = 0
    cached_tokens: int = 0


@contextmanager
def counted(route: str, target: Target) -> Iterator[Tally]:
    """Counts the work of the block in the series of the request that is being answered, if one is."""
    tally, request = Tally(), CURRENT.get()
    if request is None:
        yield tally
        return
    meter = request.call(route, target.domain.name if target.domain else None, target.adapter, target.served)
    try:
        yield tally
    except BaseException as error:
        meter.end(error.code if isinstance(error, PreceptorError) else "interrupted")
        raise
    # No answer is written: scoring reads prompts.
    meter.tokens(Usage(tally.prompt_tokens, 0, tally.cached_tokens))
