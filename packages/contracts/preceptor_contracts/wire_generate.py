"""HTTP shapes of `POST /generate/batch`: up to 256 prompts in one request."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from preceptor_contracts.frozen import Frozen
from preceptor_contracts.messages import Text
from preceptor_contracts.wire import Problem

MAX_PROMPTS = 256


def _at_least_one(prompts: tuple[str, ...]) -> tuple[str, ...]:
    # Not `min_length`: pydantic counts the good ones, so that one bad prompt would be told as "no prompts" too.
    if not prompts:
        raise ValueError(f"send 1 to {MAX_PROMPTS} prompts")
    return prompts


class GenerateBatchRequest(Frozen):
    """`POST /generate/batch`."""

    prompts: Annotated[
        tuple[Text, ...],
        Field(max_length=MAX_PROMPTS, json_schema_extra={"minItems": 1}),
        AfterValidator(_at_least_one),
    ]
    """1 to 256 of them, each as for `/generate`."""
    domain: str | None = None
    """Asks the domain's promoted adapter, or its base model where none is promoted."""
    model: str | None = None
    """An exact served name, in place of `domain`."""
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Of each answer; the domain's `max_answer_tokens` where it is left out."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token."""


class GenerateUsage(Frozen):
    """What an answer cost the engine."""

    prompt_tokens: int
    """Tokens of the prompt, the domain's part included."""
    completion_tokens: int
    """Tokens of the answer."""
    cached_tokens: int | None
    """Prompt tokens that the engine had in its prefix cache; null where it does not say."""


class GenerateResult(Frozen):
    """A prompt's answer."""

    index: int
    """Position in the request, from 0."""
    text: str
    """Begins with the messages of the safety rules that the prompt set off."""
    finish_reason: str | None
    """`stop`, or `length` where it was cut off."""
    usage: GenerateUsage
    """What it cost."""


class GenerateFailure(Frozen):
    """A prompt that the engine could not answer; the others are not touched by it."""

    index: int
    """Position in the request, from 0."""
    error: Problem
    """What went wrong."""
    hint: str = ""
    """The way out."""


class GenerateBatchAnswer(Frozen):
    """Answer to `POST /generate/batch`."""

    results: tuple[GenerateResult | GenerateFailure, ...]
    """One per prompt, in order."""
    served: str
    """The served name that answered."""
    request_id: str
    """As in the header `x-request-id`."""
