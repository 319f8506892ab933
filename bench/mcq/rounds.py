"""One round asks every side the same items, one side after another."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx
from preceptor_contracts.domains import Domain
from preceptor_contracts.mcq import Scoring

from bench.mcq.agreement import Compared, best, compare
from bench.mcq.asking import Answered, Generated, ask, generate, in_flight
from bench.mcq.harness import PROMPTS_A_REQUEST, REQUESTS_IN_FLIGHT, Evaluated, Harness
from bench.mcq.items import Item, Passage
from bench.mcq.stack import Copy, Stack
from bench.mcq.summary import Measured, Pair, Side

PROMPTS_IN_FLIGHT = REQUESTS_IN_FLIGHT * PROMPTS_A_REQUEST
"""Prompts that every side keeps in the engine at a time."""
OPTIONS_A_QUESTION = 4
WARM_UP = 8
"""Questions that every side is asked before the first round."""
_COUNTERS = ("prompt_tokens", "prefix_cache_hits", "generation_tokens")


class Counted(NamedTuple):
    """The engine's own counters."""

    prompt_tokens: float
    prefix_cache_hits: float
    generation_tokens: float


class Round(NamedTuple):
    """What one round brought."""

    measured: tuple[Measured, ...]
    pairs: tuple[Pair, ...]
    compared: tuple[Compared, ...]
    """Empty where our route tells no log-probabilities."""
    letters_differ: tuple[str, ...]
    """Items for which scoring `letters` and lm-eval choose different letters."""
    unread: int
    """Free-text answers without a letter."""


def copies(rounds: int) -> tuple[Copy, ...]:
    """The domains of a run. A side that the prefix cache could help never meets a prompt that was asked before.

    Scoring and lm-eval share a copy, since they must be sent the very same prompt. Ours goes first: what the cache
    could give, it gives to lm-eval.
    """
    wanted = []
    for number in range(rounds + 1):
        for name in ("letters", "generation", "letters-alone", "generation-alone", "cold", "warm"):
            wanted.append((f"{name}-{number}", Scoring.LETTERS))
        wanted.append((f"options-{number}", Scoring.OPTIONS))
    return tuple(Copy(name, scoring, 1000 + index) for index, (name, scoring) in enumerate(wanted))


class Rounds:
    """Asks, and keeps time."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient, harness: Harness) -> None:
        self._stack = stack
        self._client = client
        self._harness = harness

    async def run(self, number: int, items: Sequence[Item], passages: Sequence[Passage]) -> Round:
        """Runs one round; number 0 is the warm-up."""
        letters, options = self._domain("letters", number), self._domain("options", number)
        ours, by_letter = await self._ours(number, Side.LETTERS, letters, items, PROMPTS_IN_FLIGHT)
        free, texts = await self._generation(number, Side.GENERATION, items, PROMPTS_IN_FLIGHT)
        theirs, reference = self._lm_eval(number, Side.LM_EVAL_LETTERS, letters, items)
        scored, by_option = await self._ours(
            number, Side.OPTIONS, options, items, PROMPTS_IN_FLIGHT // OPTIONS_A_QUESTION
        )
        theirs_too, sums = self._lm_eval(number, Side.LM_EVAL_OPTIONS, options, items)
        alone, _ = await self._ours(number, Side.LETTERS_ALONE, self._domain("letters-alone", number), items, 1)
        free_alone, _ = await self._generation(number, Side.GENERATION_ALONE, items, 1)
        return Round(
            measured=(ours, free, theirs, scored, theirs_too, alone, free_alone),
            pairs=await self._pairs(number, passages),
            compared=tuple(
                compare(one.id, item.mcq.options, one.scores, sums.logprobs[one.id])
                for one, item in zip(by_option, items, strict=True)
                if one.scores
            ),
            letters_differ=tuple(one.id for one in by_letter if one.chosen != best(reference.logprobs[one.id])),
            unread=sum(text.chosen is None for text in texts),
        )

    async def _ours(
        self, number: int, side: Side, domain: Domain, items: Sequence[Item], limit: int
    ) -> tuple[Measured, list[Answered]]:
        jobs = [functools.partial(ask, self._client, domain, item) for item in items]
        before, began = self._count(), time.perf_counter()
        answers = await in_flight(limit, jobs)
        return self._measured(number, side, began, before, items, [one.chosen for one in answers]), answers

    async def _generation(
        self, number: int, side: Side, items: Sequence[Item], limit: int
    ) -> tuple[Measured, list[Generated]]:
        domain = self._domain("generation" if side is Side.GENERATION else "generation-alone", number)
        jobs = [functools.partial(generate, self._client, domain, item) for item in items]
        before, began = self._count(), time.perf_counter()
        texts = await in_flight(limit, jobs)
        return self._measured(number, side, began, before, items, [one.chosen for one in texts]), texts

    def _lm_eval(self, number: int, side: Side, domain: Domain, items: Sequence[Item]) -> tuple[Measured, Evaluated]:
        before, began = self._count(), time.perf_counter()
        found = self._harness.evaluate(domain, items)
        chosen = [best(found.logprobs[item.id]) for item in items]
        measured = self._measured(number, side, began, before, items, chosen)
        return measured._replace(seconds=found.seconds), found

    async def _pairs(self, number: int, passages: Sequence[Passage]) -> tuple[Pair, ...]:
        """One question at a time; who goes first, the cold or the warm one, takes turns."""
        cold_domain, warm_domain = self._domain("cold", number), self._domain("warm", number)
        pairs = []
        for index, passage in enumerate(passages):
            first, second = passage.items[:2]
            if index % 2:
                cold = await ask(self._client, cold_domain, second)
            start = await ask(self._client, warm_domain, first)
            warm = await ask(self._client, warm_domain, second)
            if not index % 2:
                cold = await ask(self._client, cold_domain, second)
            pairs.append(
                Pair(
                    *(number, passage.id, start.seconds, cold.seconds, warm.seconds),
                    *(warm.prompt_tokens, warm.cached_tokens),
                )
            )
        return tuple(pairs)

    def _domain(self, name: str, number: int) -> Domain:
        return self._stack.domains[f"{name}-{number}"]

    def _measured(
        self,
        number: int,
        side: Side,
        began: float,
        before: Counted,
        items: Sequence[Item],
        chosen: Sequence[int | None],
    ) -> Measured:
        seconds = time.perf_counter() - began
        after = self._count()
        right = sum(index == item.mcq.answer for index, item in zip(chosen, items, strict=True))
        gained = [int(now - then) for now, then in zip(after, before, strict=True)]
        return Measured(number, side, len(items), seconds, right / len(items), *gained)

    def _count(self) -> Counted:
        text = httpx.get(f"{self._stack.engine_url}/metrics", timeout=30).text
        return read_counters(text)


def read_counters(text: str) -> Counted:
    """Reads the engine's counters out of its `/metrics`.

    Raises:
        ValueError: One is missing.
    """
    found = []
    for name in _COUNTERS:
        values = re.findall(rf"^vllm:{name}_total(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        if not values:
            raise ValueError(f"The engine's metrics hold no {name!r}.")
        found.append(sum(map(float, values)))
    return Counted(*found)
