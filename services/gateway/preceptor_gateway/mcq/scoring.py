"""What scoring an item means, and scoring `letters` (DESIGN, gateway rules); `options` is in `mcq.options`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from preceptor_contracts.messages import WireMessage

from preceptor_gateway.adapters.canary import read_logprobs
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.problems import EngineRefused

Json = dict[str, Any]


class OptionScore(NamedTuple):
    """What was measured of one option; natural logs."""

    logprob: float
    """Of its text without the end of turn, or of its label."""
    end_logprob: float | None
    """Of the end of turn after the text; None where a label was scored."""
    tokens: int
    """Tokens that `logprob` adds up."""


class Scores(NamedTuple):
    """What scoring found out, one entry per option, in order."""

    probabilities: tuple[float, ...]
    """Shares that add up to 1."""
    off_option_mass: float
    """Probability that the free answer would have been no option at all."""
    options: tuple[OptionScore, ...]
    prompt_tokens: int
    cached_tokens: int | None

    @property
    def best(self) -> int:
        """Index of the most probable option; of equals the first."""
        return self.probabilities.index(max(self.probabilities))

    @property
    def margin(self) -> float:
        """Best probability less the second best."""
        second, best = sorted(self.probabilities)[-2:]
        return best - second


class Scored(NamedTuple):
    """An item's scores in the client's order."""

    scores: Scores
    flip_rate: float | None = None
    """Share of rotations whose own choice differs from the averaged one; None where nothing was debiased."""


def softmax(values: Sequence[float]) -> tuple[float, ...]:
    """Shares in proportion to exp(value)."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def off_mass(logprobs: Iterable[float]) -> float:
    """What is left of 1 beside probabilities given as logs."""
    return min(1.0, max(0.0, 1.0 - math.fsum(math.exp(value) for value in logprobs)))


class Usage(NamedTuple):
    """What the engine says that it read."""

    prompt_tokens: int
    cached_tokens: int | None


def usage_of(answer: Json) -> Usage:
    """Reads an answer's usage."""
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Usage(int(usage.get("prompt_tokens", 0)), details.get("cached_tokens"))


async def score_letters(
    engine: EngineClient, name: str, messages: list[WireMessage], label_ids: Sequence[int], stop: Sequence[int]
) -> Scores:
    """One prefill: the labels' probabilities as the first token, unmasked, so the mass outside them is honest."""
    body: Json = {
        "model": name,
        "messages": messages,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "logprob_token_ids": list(label_ids),
        "return_tokens_as_token_ids": True,
    }
    if stop:
        body["stop_token_ids"] = list(stop)
    answer = await engine.post("/v1/chat/completions", body)
    found = read_logprobs(answer)
    if missing := set(label_ids) - set(found):
        raise EngineRefused(f"The engine left out the logprobs of tokens {sorted(missing)}.")
    logprobs = [found[token] for token in label_ids]
    scored = tuple(OptionScore(value, None, 1) for value in logprobs)
    return Scores(softmax(logprobs), off_mass(logprobs), scored, *usage_of(answer))
