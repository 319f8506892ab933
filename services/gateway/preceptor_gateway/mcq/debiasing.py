"""Option-order debiasing: every rotation of the options is asked, each option is averaged over all its places."""

from __future__ import annotations

import math
from collections.abc import Sequence

from preceptor_contracts.mcq import McqItem

from preceptor_gateway.mcq.scoring import OptionScore, Scored, Scores


def rotations(item: McqItem) -> list[McqItem]:
    """The item with its options begun at each place in turn; the first is the item itself."""
    return [
        item.model_copy(update={"options": item.options[start:] + item.options[:start]})
        for start in range(len(item.options))
    ]


def average(rotated: Sequence[Scores]) -> Scored:
    """Averages what `rotations` gave, one entry per rotation, in order.

    Sums are exactly rounded (`fsum`), so the rotation that a client happens to send does not matter to the last bit.
    """
    count = len(rotated)
    # Rotation `start` shows option `index` at place `index - start`.
    back = [
        _turned(scores, [(index - start) % count for index in range(count)]) for start, scores in enumerate(rotated)
    ]
    shares = [math.fsum(scores.probabilities[index] for scores in back) / count for index in range(count)]
    cached = [scores.cached_tokens for scores in back if scores.cached_tokens is not None]
    averaged = Scores(
        probabilities=tuple(shares),
        off_option_mass=math.fsum(scores.off_option_mass for scores in back) / count,
        options=tuple(_mean([scores.options[index] for scores in back]) for index in range(count)),
        prompt_tokens=sum(scores.prompt_tokens for scores in back),
        cached_tokens=sum(cached) if cached else None,
    )
    flips = sum(scores.best != averaged.best for scores in back)
    return Scored(averaged, flips / count)


def _turned(scores: Scores, places: list[int]) -> Scores:
    return scores._replace(
        probabilities=tuple(scores.probabilities[place] for place in places),
        options=tuple(scores.options[place] for place in places),
    )


def _mean(labels: Sequence[OptionScore]) -> OptionScore:
    """The log of a label's mean probability."""
    top = max(one.logprob for one in labels)
    mean = math.fsum(math.exp(one.logprob - top) for one in labels) / len(labels)
    return OptionScore(top + math.log(mean), None, 1)
