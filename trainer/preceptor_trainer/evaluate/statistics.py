"""The numbers of a report, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from preceptor_contracts.report import CalibrationBin, SampleSize, Verdict
from scipy.stats import binomtest, multinomial

SIGNIFICANT = 0.05
LEAST_QUESTIONS = 20
LEAST_DISCORDANT = 6
"""With 5 differing answers all on one side, the exact two-sided p is 0.0625: no outcome could reach 0.05."""
RESAMPLES = 10_000
_SEED = 7
_Z95 = 1.959963984540054
_Z80 = 0.8416212335729143
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


def bootstrap_difference(n: int, only_base: int, only_adapter: int) -> tuple[float, float]:
    """95 % percentile interval of the difference of accuracies, by paired bootstrap over questions.

    A question counts +1 (adapter alone right), -1 (base alone) or 0, so resampling questions with replacement draws
    these three counts from a multinomial distribution, which is done here 10,000 times with a fixed seed.

    Args:
        n: Questions.
        only_base: Those that only the base side got right.
        only_adapter: Those that only the adapter got right.
    """
    shares = [only_base / n, only_adapter / n, (n - only_base - only_adapter) / n]
    drawn = multinomial.rvs(n, shares, size=RESAMPLES, random_state=_SEED)
    differences = sorted(float(adapter - base) / n for base, adapter, _ in drawn.tolist())
    tail = int(RESAMPLES * 0.025)
    return differences[tail], differences[-tail - 1]


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values, in their order: all may be read at once at 0.05.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(values)), key=lambda at: values[at])
    corrected = [1.0] * len(values)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, values[at] * (len(values) - rank)))
        corrected[at] = highest
    return corrected


def questions_needed(discordant_share: float, difference: float) -> int | None:
    """Questions with which McNemar's test at 0.05 would show a true difference in 4 of 5 exams; None for none.

    Args:
        discordant_share: Share of questions that only one side gets right, in [0, 1].
        difference: Of the accuracies, in [-1, 1].

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43.
    """
    apart = abs(difference)
    if apart == 0:
        return None
    share = max(discordant_share, apart)
    wanted = ((_Z95 * math.sqrt(share) + _Z80 * math.sqrt(max(0.0, share - apart**2))) / apart) ** 2
    # The formula is for many questions; below these two the exact test cannot speak at all.
    return max(math.ceil(wanted), math.ceil(LEAST_DISCORDANT / share), LEAST_QUESTIONS)


def detectable_difference(n: int, discordant_share: float) -> float:
    """Smallest true difference that `n` questions would show in 4 of 5 exams, to a thousandth; at most 1."""
    for thousandths in range(1, 1001):
        needed = questions_needed(discordant_share, thousandths / 1000)
        if needed is not None and needed <= n:
            return thousandths / 1000
    return 1.0


def sample_size(n: int, only_base: int, only_adapter: int) -> SampleSize:
    """Says what an exam of `n` questions can tell, and how many would be needed where it tells nothing."""
    share, difference = (only_base + only_adapter) / n, (only_adapter - only_base) / n
    detectable, needed = detectable_difference(n, share), questions_needed(share, difference)
    is_shown = n >= LEAST_QUESTIONS and mcnemar(only_base, only_adapter) < SIGNIFICANT
    if is_shown:
        sentence = f"n = {n} is enough to tell a difference of {abs(difference):.3f} from chance."
    elif needed is None:
        sentence = f"There is no difference to tell; with n = {n}, one below {detectable:.2f} would seldom show."
    elif needed > n:
        sentence = (
            f"n is too small to tell: with n = {n}, a difference of {abs(difference):.3f} can be chance; "
            f"about {needed:,} questions would be needed to show one of that size."
        )
    else:
        sentence = (
            f"n = {n} would usually show a difference of {abs(difference):.3f}, and did not; "
            f"one below {detectable:.2f} would seldom show."
        )
    return SampleSize(detectable=detectable, needed=needed, sentence=sentence)


def reliability_bins(confidences: Sequence[float], hits: Sequence[bool]) -> tuple[CalibrationBin, ...]:
    """Sorts answers into 10 equal-width bins by their probability; empty bins are left out.

    Args:
        confidences: Probability of the chosen option, in [0, 1].
        hits: Whether it was right.
    """
    held: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for confidence, hit in zip(confidences, hits, strict=True):
        held[min(int(confidence * _BINS), _BINS - 1)].append((confidence, hit))
    return tuple(
        CalibrationBin(
            low=at / _BINS,
            high=(at + 1) / _BINS,
            n=len(answers),
            confidence=min(1.0, math.fsum(confidence for confidence, _ in answers) / len(answers)),
            accuracy=sum(hit for _, hit in answers) / len(answers),
        )
        for at, answers in enumerate(held)
        if answers
    )


def expected_calibration_error(confidences: Sequence[float], hits: Sequence[bool]) -> float:
    """Mean gap between confidence and hit rate over 10 equal-width bins, weighted by their size.

    Args:
        confidences: Probability of the chosen option, in [0, 1].
        hits: Whether it was right.
    """
    gaps = (item.n * abs(item.confidence - item.accuracy) for item in reliability_bins(confidences, hits))
    return min(1.0, math.fsum(gaps) / len(confidences))


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
