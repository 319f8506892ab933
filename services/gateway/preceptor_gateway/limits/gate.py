"""`LIMITED`: admits a request of an ordinary route before it runs, and releases it once its answer is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from preceptor_contracts.errors import PreceptorError
from starlette.types import Scope

from preceptor_gateway.auth import CallerDep
from preceptor_gateway.limits.limiter import Limiter
from preceptor_gateway.privacy import note_prompt

CHARACTERS_PER_TOKEN = 3
"""For estimates: the shipped domains' texts have 2.8 to 3.3 under the embedded base model's tokenizer."""
ANSWER_TOKENS = 256
"""For estimates of answers whose request names no `max_tokens`."""
_BATCHES = ("items", "prompts")
"""Fields that hold a batch."""


class Cost(NamedTuple):
    """What a request counts for."""

    requests: int
    tokens: int


def estimate_tokens(characters: int, answer_tokens: int) -> int:
    """About how many tokens a prompt and its answer will take, without a tokenizer."""
    return characters // CHARACTERS_PER_TOKEN + answer_tokens


def cost_of(raw: bytes) -> Cost:
    """Reads what a request counts for from its body; a batch costs its items. Errors are the route's to tell."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Cost(1, 0)
    if not isinstance(body, dict):
        return Cost(1, 0)
    batch = next((body[name] for name in _BATCHES if isinstance(body.get(name), list)), ())
    items = max(1, len(batch))
    writes = any(name in body for name in ("prompt", "prompts"))
    named = body.get("max_tokens")
    # Multiple choice is one token an item.
    answer = named if type(named) is int and named > 0 else (ANSWER_TOKENS if writes else 1)
    return Cost(items, estimate_tokens(len(raw), items * answer))


def note_tokens(scope: Scope, tokens: int | None) -> None:
    """Says how many tokens a request really took, prompt and answer; None, or no word, leaves its estimate."""
    scope["tokens_used"] = tokens


async def release(scope: Scope) -> None:
    """Ends a request's admission, if it has one; whoever comes first ends it, and again is nothing."""
    if (admission := scope.get("admission")) is not None:
        await admission.done(scope.get("tokens_used"))


async def limited(request: Request, caller: CallerDep) -> AsyncIterator[None]:
    """Admits before the route runs; releases when its answer is sent or the client is gone, a stream before its end."""
    services = request.app.state.services
    limiter: Limiter = services.limiter
    note_prompt(request.scope, await request.body(), services.settings.log_prompts)
    if caller.unlimited:
        yield
        return
    requests, tokens = cost_of(await request.body())
    admission = await limiter.admit(caller, tokens, requests)
    request.scope["limit_headers"] = admission.headers
    request.scope["admission"] = admission
    try:
        yield
    except (PreceptorError, RequestValidationError):
        # What failed took nothing that counts; a client that left early keeps its estimate.
        request.scope.setdefault("tokens_used", 0)
        raise
    finally:
        await release(request.scope)


LIMITED = Depends(limited)
