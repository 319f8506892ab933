"""The two ways to score options against the engine (DESIGN, gateway rules)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from preceptor_contracts.messages import WireMessage

from preceptor_gateway.adapters.canary import read_logprobs
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.problems import EngineRefused

Json = dict[str, Any]


class Scores(NamedTuple):
    """What scoring found out, one entry per option, in order."""

    probabilities: tuple[float, ...]
    """Shares that add up to 1."""
    off_option_mass: float
    """Probability that the free answer would have been no option at all."""
    prompt_tokens: int
    cached_tokens: int | None


def softmax(values: Sequence[float]) -> tuple[float, ...]:
    """Shares in proportion to exp(value)."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def _off_mass(logprobs: Sequence[float]) -> float:
    return min(1.0, max(0.0, 1.0 - math.fsum(math.exp(value) for value in logprobs)))


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
    prompt, cached = _usage(answer)
    return Scores(softmax(logprobs), _off_mass(logprobs), prompt, cached)


async def score_options(engine: EngineClient, name: str, messages: list[WireMessage], options: Sequence[str]) -> Scores:
    """Each option's text as the whole answer, closed by the end of turn.

    The choice goes by mean log-probability a token (sums favour short options); the off-option mass goes by sums,
    which are the probabilities of the complete answers. Token ids come from the chat template with the option as the
    assistant's turn, which is how answers were trained, and all options are scored in one request.
    """
    end = await engine.end_of_turn()
    prompt, *whole = await asyncio.gather(
        engine.tokenize(messages),
        *(engine.tokenize([*messages, {"role": "assistant", "content": option}], answered=True) for option in options),
    )
    sequences = [_close(prompt, ids, end) for ids in whole]
    body: Json = {"model": name, "prompt": sequences, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = await engine.post("/v1/completions", body)
    try:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        logprobs = [
            _answer_logprobs(choice["prompt_logprobs"], ids, len(prompt))
            for choice, ids in zip(choices, sequences, strict=True)
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise EngineRefused("The engine's answer holds no logprobs of the prompt.") from error
    used, cached = _usage(answer)
    means = [math.fsum(values) / len(values) for values in logprobs]
    return Scores(softmax(means), _off_mass([math.fsum(values) for values in logprobs]), used, cached)


def _close(prompt: tuple[int, ...], whole: tuple[int, ...], end: int) -> list[int]:
    """Prompt and answer up to its end of turn; what a template writes behind it (SmolLM2: a line feed) is dropped."""
    if whole[: len(prompt)] != prompt:
        raise EngineRefused(
            "The chat template writes a prompt differently once it is answered, so options cannot be scored.",
            code="template_not_prefix",
            hint="Use scoring 'letters' in domain.yaml.",
        )
    if end not in whole[len(prompt) :]:
        raise EngineRefused("The engine ends an assistant's turn in more than one way, so options cannot be scored.")
    return list(whole[: whole.index(end, len(prompt)) + 1])


def _answer_logprobs(entries: list[Json | None], ids: list[int], start: int) -> list[float]:
    found = []
    for token, entry in zip(ids[start:], entries[start:], strict=True):
        if entry is None:
            raise EngineRefused("The engine left out a prompt token's logprob.")
        found.append(float(entry[str(token)]["logprob"]))
    return found


def _usage(answer: Json) -> tuple[int, int | None]:
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return int(usage.get("prompt_tokens", 0)), details.get("cached_tokens")
