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
from bench.mcq.asking import Answered, Generated, generate, in_flight, score
from bench.mcq.harness import Evaluated, Harness
from bench.mcq.items import Item, Passage
from bench.mcq.load import PROMPTS_IN_FLIGHT, SPLITS, TRIES, Tried
from bench.mcq.stack import Copy, Stack
from bench.mcq.summary import Measured, Pair, Side

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
    """Options; empty where our route tells no log-probabilities."""
    letters: tuple[tuple[str, bool], ...]
    """Per item, whether scoring `letters` and lm-eval choose the same letter."""
    unread: int
    """Free-text answers without a letter."""


def copies(rounds: int) -> tuple[Copy, ...]:
    """The domains of a run: no side but lm-eval ever meets a prompt that was asked before.

    Scoring and lm-eval share a copy, since they must be sent the very same prompt. Ours goes first: what the cache
    could give, it gives to lm-eval.
    """
    letters = ("letters", "generation", "letters-alone", "generation-alone", "cold-letters", "warm-letters")
    options = ("options", "options-passages", "cold-options", "warm-options")
    wanted = [
        (f"{name}-{number}", scoring)
        for number in range(rounds + 1)
        for scoring, names in ((Scoring.LETTERS, letters), (Scoring.OPTIONS, options))
        for name in names
    ]
    return tuple(Copy(name, scoring, 1000 + index) for index, (name, scoring) in enumerate(wanted))


class Rounds:
    """Asks, and keeps time."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient, harness: Harness) -> None:
        self._stack = stack
        self._client = client
        self._harness = harness

    def choose_split(self, items: Sequence[Item]) -> list[Tried]:
        """Lets lm-eval try every split, in turns, and keeps the best for the rounds."""
        fastest = dict.fromkeys(SPLITS, 0.0)
        for split in SPLITS * TRIES:
            self._harness.split = split
            found = self._harness.evaluate(self._domain("options", 0), items)
            fastest[split] = max(fastest[split], len(items) / found.seconds)
        self._harness.split = max(fastest, key=lambda split: fastest[split])
        return [Tried(split, rate) for split, rate in fastest.items()]

    async def run(
        self, number: int, items: Sequence[Item], with_passages: Sequence[Item], passages: Sequence[Passage]
    ) -> Round:
        """Runs one round; number 0 is the warm-up.

        Args:
            number: Whose domains are asked.
            items: Asked of every side.
            with_passages: Asked of scoring `options` and of lm-eval.
            passages: Their first two questions are asked one at a time.
        """
        ours, by_letter = await self._score(number, Side.LETTERS, "letters", items)
        free, texts = await self._generate(number, Side.GENERATION, "generation", items, PROMPTS_IN_FLIGHT)
        theirs, reference = self._lm_eval(number, Side.LM_EVAL_LETTERS, "letters", items)
        measured, compared = [ours, free, theirs], []
        for name, side, opponent, asked in (
            ("options", Side.OPTIONS, Side.LM_EVAL_OPTIONS, items),
            ("options-passages", Side.PASSAGES, Side.LM_EVAL_PASSAGES, with_passages),
        ):
            scored, by_option = await self._score(number, side, name, asked)
            held, sums = self._lm_eval(number, opponent, name, asked)
            measured += [scored, held]
            compared += [
                compare(item.id, item.mcq.options, one.scores, sums.logprobs[item.id])
                for item, one in zip(asked, by_option, strict=True)
                if one.scores
            ]
        measured.append(await self._alone(number, items))
        measured.append((await self._generate(number, Side.GENERATION_ALONE, "generation-alone", items, 1))[0])
        pairs = [await self._pairs(number, scoring, passages) for scoring in (Scoring.LETTERS, Scoring.OPTIONS)]
        return Round(
            measured=tuple(measured),
            pairs=tuple(pair for part in pairs for pair in part),
            compared=tuple(compared),
            letters=tuple((one.id, one.chosen == best(reference.logprobs[one.id])) for one in by_letter),
            unread=sum(text.chosen is None for text in texts),
        )

    async def _score(
        self, number: int, side: Side, name: str, items: Sequence[Item]
    ) -> tuple[Measured, list[Answered]]:
        domain = self._domain(name, number)
        before, began = self._count(), time.perf_counter()
        answers = await score(self._client, domain, items)
        seconds = time.perf_counter() - began
        return self._measured(number, side, seconds, before, items, [one.chosen for one in answers]), answers

    async def _alone(self, number: int, items: Sequence[Item]) -> Measured:
        domain = self._domain("letters-alone", number)
        before, began = self._count(), time.perf_counter()
        answers = [(await score(self._client, domain, [item]))[0] for item in items]
        seconds = time.perf_counter() - began
        return self._measured(number, Side.LETTERS_ALONE, seconds, before, items, [one.chosen for one in answers])

    async def _generate(
        self, number: int, side: Side, name: str, items: Sequence[Item], limit: int
    ) -> tuple[Measured, list[Generated]]:
        domain = self._domain(name, number)
        jobs = [functools.partial(generate, self._client, domain, item) for item in items]
        before, began = self._count(), time.perf_counter()
        texts = await in_flight(limit, jobs)
        seconds = time.perf_counter() - began
        return self._measured(number, side, seconds, before, items, [one.chosen for one in texts]), texts

    def _lm_eval(self, number: int, side: Side, name: str, items: Sequence[Item]) -> tuple[Measured, Evaluated]:
        before = self._count()
        found = self._harness.evaluate(self._domain(name, number), items)
        chosen = [best(found.logprobs[item.id]) for item in items]
        return self._measured(number, side, found.seconds, before, items, chosen), found

    async def _pairs(self, number: int, scoring: Scoring, passages: Sequence[Passage]) -> list[Pair]:
        """One question at a time; who goes first, the cold or the warm second question, takes turns."""
        cold_domain, warm_domain = (self._domain(f"{name}-{scoring.value}", number) for name in ("cold", "warm"))
        pairs = []
        for index, passage in enumerate(passages):
            first, second = passage.items[:2]
            if index % 2:
                cold_s, _ = await self._clocked(cold_domain, second)
            first_s, _ = await self._clocked(warm_domain, first)
            warm_s, warm = await self._clocked(warm_domain, second)
            if not index % 2:
                cold_s, _ = await self._clocked(cold_domain, second)
            pairs.append(
                Pair(number, scoring, passage.id, first_s, cold_s, warm_s, warm.prompt_tokens, warm.cached_tokens)
            )
        return pairs

    async def _clocked(self, domain: Domain, item: Item) -> tuple[float, Answered]:
        began = time.perf_counter()
        (answer,) = await score(self._client, domain, [item])
        return time.perf_counter() - began, answer

    def _domain(self, name: str, number: int) -> Domain:
        return self._stack.domains[f"{name}-{number}"]

    def _measured(
        self,
        number: int,
        side: Side,
        seconds: float,
        before: Counted,
        items: Sequence[Item],
        chosen: Sequence[int | None],
    ) -> Measured:
        after = self._count()
        right = sum(index == item.mcq.answer for index, item in zip(chosen, items, strict=True))
        gained = [int(now - then) for now, then in zip(after, before, strict=True)]
        return Measured(number, side, len(items), seconds, right / len(items), *gained)

    def _count(self) -> Counted:
        return read_counters(httpx.get(f"{self._stack.engine_url}/metrics", timeout=30).text)


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
