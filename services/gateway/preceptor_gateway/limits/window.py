"""The arithmetic of a sliding minute: two counters, the last whole minute weighted by how much of it still counts.

At second 15 of a minute, the minute before counts three quarters. So a burst at a minute's edge still counts behind
the edge, and what a key may ask comes back evenly. The price of two counters in place of a list of every request:
within the minute before, requests count as if they had been spread evenly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SPAN_S = 60
_ROUNDING = 1e-6


class Window(NamedTuple):
    """How much of a limit is used at one moment."""

    limit: int
    previous: int
    """Counted in the minute before."""
    current: int
    """Counted in this minute."""
    elapsed: float
    """Seconds of this minute that are over, in [0, 60)."""

    @property
    def used(self) -> float:
        """What counts now."""
        return self.previous * (1 - self.elapsed / SPAN_S) + self.current

    @property
    def holds(self) -> bool:
        """Says whether what counts is within the limit."""
        return self.used <= self.limit + _ROUNDING

    @property
    def remaining(self) -> int:
        """What may still be asked for now."""
        return max(0, math.floor(self.limit - self.used + _ROUNDING))

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more, if nothing else is asked."""
        rest = SPAN_S - self.elapsed
        if self.current > 0:
            return rest + SPAN_S
        return rest if self.previous > 0 else 0.0

    def wait_s(self, cost: int) -> float:
        """Seconds until `cost` more would fit, if nothing else is asked; it must be within the limit."""
        room = self.limit - cost
        if self.used <= room + _ROUNDING:
            return 0.0
        if self.current <= room:  # it fits within this minute, once enough of the one before has gone
            return SPAN_S * (1 - (room - self.current) / self.previous) - self.elapsed
        return SPAN_S - self.elapsed + SPAN_S * (1 - room / self.current)


def minute_of(now: float) -> tuple[int, float]:
    """The minute that a moment is in, and the seconds of it that are over."""
    minute = int(now // SPAN_S)
    return minute, now - minute * SPAN_S


def spell(seconds: float) -> str:
    """A duration as OpenAI writes it: `250ms`, `1s`, `6m0s`, `1h0m0s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000 - _ROUNDING))}ms" if seconds < 0.999 else "1s"
    whole = math.ceil(seconds - _ROUNDING)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
