"""Several rounds in one figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Median and range."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Sums up one value a round.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("Nothing was measured.")
    return Spread(statistics.median(values), min(values), max(values))


def shown(seen: Spread, digits: int) -> str:
    """Median and range, for a table."""
    return f"{seen.median:.{digits}f} ({seen.low:.{digits}f} to {seen.high:.{digits}f})"
