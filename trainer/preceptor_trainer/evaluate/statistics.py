"""The numbers of a report, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from preceptor_contracts.report import Verdict
from scipy.stats import binomtest

SIGNIFICANT = 0.05
LEAST_QUESTIONS = 20
LEAST_DISCORDANT = 6
"""With 5 differing answers all on one side, the exact two-sided p is 0.0625: no outcome could reach 0.05."""
_Z95 = 1.959963984540054
_BINS = 10


class Judgement(NamedTuple):
    """A verdict and the sentence that explains it."""

    verdict: Verdict
    reason: str


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share, in [0, 1]."""
    share = correct / n
    spread = _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At 0 and n the bound is exact, and rounding must not push it past.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def mcnemar(only_base: int, only_adapter: int) -> float:
    """Exact two-sided McNemar p of a paired comparison.

    Args:
        only_base: Questions that only the base side got right.
        only_adapter: Questions that only the adapter got right.
    """
    discordant = only_base + only_adapter
    return 1.0 if discordant == 0 else min(1.0, float(binomtest(only_base, discordant, 0.5).pvalue))


def expected_calibration_error(confidences: Sequence[float], hits: Sequence[bool]) -> float:
    """Mean gap between confidence and hit rate over 10 equal-width bins, weighted by their size.

    Args:
        confidences: Probability of the chosen option, in [0, 1].
        hits: Whether it was right.
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for confidence, hit in zip(confidences, hits, strict=True):
        bins[min(int(confidence * _BINS), _BINS - 1)].append((confidence, hit))
    gaps = (abs(sum(confidence for confidence, _ in held) - sum(hit for _, hit in held)) for held in bins)
    return min(1.0, sum(gaps) / len(confidences))


def brier(probabilities: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Multi-class Brier score, in [0, 2].

    Args:
        probabilities: By option, per question.
        answers: 0-based index of the right option, per question.
    """
    total = 0.0
    for given, answer in zip(probabilities, answers, strict=True):
        total += sum((value - (position == answer)) ** 2 for position, value in enumerate(given))
    return min(2.0, total / len(answers))


def judge(n: int, only_base: int, only_adapter: int) -> Judgement:
    """Says whether the adapter is better, from the questions that only one side got right."""
    discordant = only_base + only_adapter
    p = mcnemar(only_base, only_adapter)
    won = f"{only_adapter} questions were answered rightly by the adapter alone and {only_base} by the base alone"
    if n < LEAST_QUESTIONS:
        return Judgement(Verdict.TOO_FEW, f"The exam has {n} questions; fewer than {LEAST_QUESTIONS} prove nothing.")
    if discordant < LEAST_DISCORDANT:
        return Judgement(
            Verdict.TOO_FEW,
            f"Adapter and base differ on {discordant} of {n} questions; "
            f"fewer than {LEAST_DISCORDANT} can never reach p < {SIGNIFICANT}.",
        )
    if only_adapter > only_base and p < SIGNIFICANT:
        return Judgement(Verdict.BETTER, f"Of {n} questions, {won} (McNemar p = {p:.2g}).")
    if only_adapter < only_base:
        return Judgement(Verdict.NOT_BETTER, f"The adapter is worse: of {n} questions, {won} (McNemar p = {p:.2g}).")
    return Judgement(Verdict.NOT_BETTER, f"That can be chance: of {n} questions, {won} (McNemar p = {p:.2g}).")
