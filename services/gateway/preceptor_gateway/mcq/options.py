"""Scoring `options`: each option's text as the whole answer, closed by the end of turn.

The choice goes by mean log-probability a token (sums favour short options); the off-option mass goes by sums, which
are the probabilities of the complete answers. Token ids come from the chat template with the option as the
assistant's turn, which is how answers were trained. There are two ways to read their log-probabilities off the
engine, with the same numbers and different prices (docs/decisions/0001): `_read_whole` and `_read_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from preceptor_contracts.messages import WireMessage

from preceptor_gateway.batches import all_or_none
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.mcq.scoring import Json, OptionScore, Scores, off_mass, softmax, usage_of
from preceptor_gateway.problems import EngineRefused

Ids = tuple[int, ...]
_BLOCK = 32
"""Tokens of a block of the prefix cache on the CPU engine; a GPU's are smaller, which makes steps cheaper still."""
_STEP_OVERHEAD = 5
"""What one more sequence costs the engine beside its tokens, in tokens of prefill. Measured, see the decision."""
_MOST_IDS = 128
"""vLLM's bound on `logprob_token_ids` (MAX_LOGPROB_TOKEN_IDS)."""


class _Prompted(NamedTuple):
    """An item as token ids."""

    prompt: Ids
    answers: tuple[Ids, ...]
    """Per option, its tokens and the end of turn."""


class _Read(NamedTuple):
    logprobs: list[list[float]]
    """Per option, one per token of its answer."""
    cached_tokens: int | None
    """Of the prompt."""


async def score_options(engine: EngineClient, name: str, messages: list[WireMessage], options: Sequence[str]) -> Scores:
    """Scores every option of an item.

    Raises:
        PreceptorError: The engine fails, or its chat template cannot be scored this way.
    """
    end = await engine.end_of_turn()
    answered = ([*messages, WireMessage(role="assistant", content=option)] for option in options)
    prompt, *whole = await all_or_none(
        [engine.tokenize(messages), *(engine.tokenize(turns, answered=True) for turns in answered)]
    )
    asked = _Prompted(prompt, tuple(_answer(prompt, ids, end) for ids in whole))
    read = await (_read_steps if _steps_are_cheaper(asked) else _read_whole)(engine, name, asked)
    means = [math.fsum(values) / len(values) for values in read.logprobs]
    return Scores(
        probabilities=softmax(means),
        off_option_mass=off_mass(math.fsum(values) for values in read.logprobs),
        options=tuple(OptionScore(math.fsum(one[:-1]), one[-1], len(one) - 1) for one in read.logprobs),
        prompt_tokens=len(prompt) + sum(map(len, asked.answers)),
        cached_tokens=read.cached_tokens,
    )


def _answer(prompt: Ids, whole: Ids, end: int) -> Ids:
    """The answer up to its end of turn; what a template writes behind it (SmolLM2: a line feed) is dropped."""
    if whole[: len(prompt)] != prompt:
        raise EngineRefused(
            "The chat template writes a prompt differently once it is answered, so options cannot be scored.",
            code="template_not_prefix",
            hint="Use scoring 'letters' in domain.yaml.",
        )
    if end not in whole[len(prompt) :]:
        raise EngineRefused("The engine ends an assistant's turn in more than one way, so options cannot be scored.")
    return whole[len(prompt) : whole.index(end, len(prompt)) + 1]


# --- whole: one sequence an option, the engine's `prompt_logprobs`; reads no prefix cache ---


async def _read_whole(engine: EngineClient, name: str, asked: _Prompted) -> _Read:
    sequences = [[*asked.prompt, *answer] for answer in asked.answers]
    body: Json = {"model": name, "prompt": sequences, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    reply = await engine.post("/v1/completions", body)
    try:
        choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        logprobs = [
            _of_prompt(choice["prompt_logprobs"], ids, len(asked.prompt))
            for choice, ids in zip(choices, sequences, strict=True)
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise EngineRefused("The engine's answer holds no logprobs of the prompt.") from error
    return _Read(logprobs, usage_of(reply).cached_tokens)


def _of_prompt(entries: list[Json | None], ids: list[int], start: int) -> list[float]:
    found = []
    for token, entry in zip(ids[start:], entries[start:], strict=True):
        if entry is None:
            raise EngineRefused("The engine left out a prompt token's logprob.")
        found.append(float(entry[str(token)]["logprob"]))
    return found


# --- steps: one sequence a token, its logprob as the next one; reads the prefix cache ---


Beginnings = dict[Ids, set[int]]
"""Every beginning of an answer, without the prompt, with the tokens that come next in one option or another."""


def _beginnings(answers: Sequence[Ids]) -> Beginnings:
    found: Beginnings = {}
    for answer in answers:
        for position, token in enumerate(answer):
            found.setdefault(answer[:position], set()).add(token)
    return found


def _steps_are_cheaper(asked: _Prompted) -> bool:
    """Compares the tokens that the engine must compute either way, the prompt not being cached yet."""
    size = len(asked.prompt)
    steps = (((size + len(beginning)) % _BLOCK) + _STEP_OVERHEAD for beginning in _beginnings(asked.answers))
    return size + sum(steps) < sum(size + len(answer) for answer in asked.answers)


async def _read_steps(engine: EngineClient, name: str, asked: _Prompted) -> _Read:
    """Asks for the prompt first, so that what it had cached is known, then for all that begins with it at once."""
    beginnings = _beginnings(asked.answers)
    first: Beginnings = {(): beginnings.pop(())}
    table, cached = await _next_logprobs(engine, name, asked.prompt, first)
    parts = [_next_logprobs(engine, name, asked.prompt, part) for part in _parts(beginnings)]
    for read in await all_or_none(parts):
        table |= read.table
    logprobs = [[table[answer[:position]][token] for position, token in enumerate(answer)] for answer in asked.answers]
    return _Read(logprobs, cached)


def _parts(beginnings: Beginnings) -> Iterator[Beginnings]:
    """Splits where one request would ask for more token ids than vLLM takes."""
    part: Beginnings = {}
    ids: set[int] = set()
    for beginning, tokens in beginnings.items():
        if len(ids | tokens) > _MOST_IDS:
            yield part
            part, ids = {}, set()
        part[beginning] = tokens
        ids |= tokens
    if part:
        yield part


class _Step(NamedTuple):
    table: dict[Ids, dict[int, float]]
    """Per beginning, the log-probabilities of the tokens asked for."""
    cached_tokens: int | None
    """Of the last beginning and its prompt; the engine tells no more."""


async def _next_logprobs(engine: EngineClient, name: str, prompt: Ids, beginnings: Beginnings) -> _Step:
    body: Json = {
        "model": name,
        "prompt": [prompt + beginning for beginning in beginnings],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": sorted(set[int]().union(*beginnings.values())),
        "return_tokens_as_token_ids": True,
    }
    reply = await engine.post("/v1/completions", body)
    try:
        choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        table = {
            beginning: {token: float(choice["logprobs"]["top_logprobs"][0][f"token_id:{token}"]) for token in tokens}
            for (beginning, tokens), choice in zip(beginnings.items(), choices, strict=True)
        }
    except (LookupError, TypeError, ValueError) as error:
        raise EngineRefused("The engine's answer holds no logprobs by token id.") from error
    return _Step(table, usage_of(reply).cached_tokens)
