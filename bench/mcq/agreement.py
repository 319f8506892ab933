"""Whether we and lm-eval choose the same option. Its numbers are the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.mcq.asking import OptionScore

NORMALISATIONS = ("sum", "per token", "per byte")
"""lm-eval's `acc` goes by sums and its `acc_bytes` per byte; per token is Preceptor's, laid on both sides' sums."""


class Compared(NamedTuple):
    """One item, scored by both."""

    id: str
    offset: float
    """lm-eval's sum less ours, mean over the options. lm-eval counts the line feed that ends the chat template's prompt
    as the first token of the answer, so that all of an item's options share the same small offset."""
    spread: float
    """How far the options' offsets lie apart: 0 where both sides scored the very same tokens with the same numbers."""
    ours: tuple[int, ...]
    """Our choice under each of `NORMALISATIONS`."""
    reference: tuple[int, ...]
    """lm-eval's."""


def compare(item: str, options: Sequence[str], scores: Sequence[OptionScore], sums: Sequence[float]) -> Compared:
    """Holds our scores of an item's options against lm-eval's sums.

    Raises:
        ValueError: The sides scored different numbers of options.
    """
    offsets = [theirs - score.logprob for theirs, score in zip(sums, scores, strict=True)]
    sizes = {
        "sum": [1] * len(options),
        "per token": [score.tokens for score in scores],
        "per byte": [len(option.encode()) for option in options],
    }
    return Compared(
        id=item,
        offset=sum(offsets) / len(offsets),
        spread=max(offsets) - min(offsets),
        ours=tuple(best([score.logprob for score in scores], sizes[name]) for name in NORMALISATIONS),
        reference=tuple(best(sums, sizes[name]) for name in NORMALISATIONS),
    )


def best(sums: Sequence[float], sizes: Sequence[int] | None = None) -> int:
    """The first option with the greatest sum, or greatest sum for its size."""
    values = [value / size for value, size in zip(sums, sizes or [1] * len(sums), strict=True)]
    return values.index(max(values))
