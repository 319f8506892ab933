"""A goal of an issue beside what was reached."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """A row of a report's first table."""

    measure: str
    result: str
    wanted: str
    reached: bool | None
    """None where it was not measured."""

    @property
    def word(self) -> str:
        """Reached, or not."""
        return "not measured" if self.reached is None else "reached" if self.reached else "**not reached**"
