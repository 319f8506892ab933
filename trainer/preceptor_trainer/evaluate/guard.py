"""The guard set: general questions that have nothing to do with a domain, so that forgetting shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.records import QUESTIONS, McqQuestion, Question
from preceptor_contracts.report import Guard

from preceptor_trainer.evaluate import statistics
from preceptor_trainer.evaluate.graders import Graded
from preceptor_trainer.evaluate.reporting import compare
from preceptor_trainer.evaluate.sitting import Sitting
from preceptor_trainer.gateway import Gateway

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHANCE = 0.25


def guard_file() -> Path:
    """Finds the shipped questions: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "guard" / "general.jsonl"
    return inside if inside.is_file() else package.parent / "guard" / "general.jsonl"


def read_guard() -> tuple[Question, ...]:
    """Reads the shipped questions, all multiple choice with four options."""
    return read_jsonl(guard_file(), QUESTIONS)


class GuardGrader:
    """Right is the option whose text the raw prompt makes likeliest, by mean log-probability a token.

    No domain prompt and no chat template is involved, so that every domain's adapter is asked the same.

    Args:
        tokenizer: The base model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/v1/completions` for the log-probabilities of every option in one request."""
        if not isinstance(question, McqQuestion):
            raise TypeError(f"{question.id!r} is no multiple-choice question")
        asked = f"Question: {question.question}\nAnswer:"
        before = self._ids(asked)
        whole = [self._ids(f"{asked} {option}") for option in question.options]
        logprobs = await gateway.score(served, whole)
        # The first token has no log-probability, so position p of the ids is p - 1 of the numbers.
        means = [_mean(of[max(1, _shared(before, ids)) - 1 :]) for ids, of in zip(whole, logprobs, strict=True)]
        best = max(range(len(means)), key=lambda at: means[at])
        correct = best == question.answer
        return Graded(
            answer=question.labels[best],
            expected=question.labels[question.answer],
            correct=correct,
            reason="" if correct else f"chose {question.options[best]!r}",
        )

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer(text)["input_ids"]]


def judge_guard(sitting: Sitting, guard_sha: str) -> Guard:
    """Says whether the adapter forgot: significantly worse than the base at general questions."""
    whole, paired = compare(sitting), sitting.pair("base", "adapter")
    gained, lost = len(paired.only_second), len(paired.only_first)
    forgot = lost > gained and whole.mcnemar_p < statistics.SIGNIFICANT
    counts = f"of {whole.n} general questions it lost {lost} and gained {gained} (McNemar p = {whole.mcnemar_p:.2g})"
    if forgot:
        reason = f"The adapter forgot: {counts}."
    elif whole.base.ci95[0] <= _CHANCE:
        reason = f"The base model itself hardly beats chance, so the adapter's forgetting could not show: {counts}."
    else:
        apart = statistics.detectable_difference(whole.n, (gained + lost) / whole.n)
        reason = f"The adapter shows no forgetting: {counts}; a loss below {apart:.2f} would seldom show."
    return Guard(**dict(whole), guard_sha=guard_sha, forgot=forgot, reason=reason)


def _shared(one: Sequence[int], two: Sequence[int]) -> int:
    pairs = zip(one, two, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
