"""How hard every side is driven: the same number of prompts in the engine at a time."""

from __future__ import annotations

from typing import NamedTuple

PROMPTS_IN_FLIGHT = 32
"""Of every side, lm-eval among them, but where one question is asked at a time. The gateway's own default."""
GENERATED_TOKENS = 16
"""Most tokens of a free-text answer: room for "The answer is (B) ..."."""
WARM_UP = 8
"""Questions that every side is asked before the first round."""
TRIED = 24
"""Questions that lm-eval is asked with each split."""
TRIES = 2
"""How often; the best counts."""


class Split(NamedTuple):
    """How lm-eval keeps its prompts in flight."""

    requests: int
    """Its `num_concurrent`."""
    prompts: int
    """Its `batch_size`: prompts a request."""


SPLITS = tuple(Split(PROMPTS_IN_FLIGHT // prompts, prompts) for prompts in (1, 4, 8, 16, 32))
"""Those that are tried before the rounds, so that lm-eval runs them with what suits it best on this machine."""


class Tried(NamedTuple):
    """A split and what lm-eval reached with it."""

    split: Split
    rate: float
    """Questions per second, scoring options; the best try."""
