"""A count of things with the first of them: what a report says of a million rows must stay small."""

from __future__ import annotations

from typing import Generic, TypeVar

KEPT = 200
"""Findings of one sort that a report lists; all are counted."""
T = TypeVar("T")


class Tally(Generic[T]):
    """Counts everything, keeps the first few."""

    def __init__(self, keep: int = KEPT) -> None:
        self.count = 0
        self.first: list[T] = []
        self._keep = keep

    def add(self, item: T) -> None:
        """Counts one more."""
        self.count += 1
        if len(self.first) < self._keep:
            self.first.append(item)
