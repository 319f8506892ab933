"""The arithmetic between measurements and the report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from preceptor_contracts.mcq import Scoring

from bench.spread import Spread, spread

__all__ = ["Measured", "Pair", "Side", "Spread", "rates", "ratios", "saved", "spread"]


class Side(StrEnum):
    """Who answers, and how."""

    LETTERS = "letters"
    GENERATION = "generation"
    LM_EVAL_LETTERS = "lm-eval letters"
    OPTIONS = "options"
    LM_EVAL_OPTIONS = "lm-eval options"
    PASSAGES = "options, with passages"
    LM_EVAL_PASSAGES = "lm-eval options, with passages"
    LETTERS_ALONE = "letters, one at a time"
    GENERATION_ALONE = "generation, one at a time"


class Measured(NamedTuple):
    """One side in one round."""

    round: int
    side: Side
    questions: int
    seconds: float
    accuracy: float
    prompt_tokens: int
    """That the engine was given, by its own counters."""
    cached_tokens: int
    """Of them, found in the prefix cache."""
    generated_tokens: int

    @property
    def rate(self) -> float:
        """Questions per second."""
        return self.questions / self.seconds


class Pair(NamedTuple):
    """A passage's second question, asked cold and asked after the first."""

    round: int
    scoring: Scoring
    passage: str
    first_s: float
    """The first question, with nothing cached."""
    cold_s: float
    """The second question, with nothing cached."""
    warm_s: float
    """The second question, right after the first."""
    prompt_tokens: int
    cached_tokens: int
    """Of the warm one."""


def rates(measured: Sequence[Measured], side: Side) -> list[float]:
    """A side's questions per second, one a round, in order."""
    return [one.rate for one in sorted(measured) if one.side is side]


def ratios(measured: Sequence[Measured], side: Side, opponent: Side) -> list[float]:
    """How many times as fast as its opponent a side was, round by round: both saw the same items minutes apart."""
    return [ours / theirs for ours, theirs in zip(rates(measured, side), rates(measured, opponent), strict=True)]


def saved(pairs: Sequence[Pair], scoring: Scoring) -> list[float]:
    """The share of a second question's latency that the cache saves, one a round: medians, warm against cold."""
    found = []
    for number in sorted({pair.round for pair in pairs}):
        part = [pair for pair in pairs if pair.round == number and pair.scoring is scoring]
        warm = statistics.median(pair.warm_s for pair in part)
        found.append(1 - warm / statistics.median(pair.cold_s for pair in part))
    return found
