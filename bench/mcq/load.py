"""How hard every side is driven: the same number of prompts in the engine at a time."""

from __future__ import annotations

REQUESTS_IN_FLIGHT = 4
"""lm-eval's `num_concurrent`."""
PROMPTS_A_REQUEST = 8
"""lm-eval's `batch_size`."""
PROMPTS_IN_FLIGHT = REQUESTS_IN_FLIGHT * PROMPTS_A_REQUEST
"""Of every side, lm-eval among them, but where one question is asked at a time."""
GENERATED_TOKENS = 16
"""Most tokens of a free-text answer: room for "The answer is (B) ..."."""
WARM_UP = 8
"""Questions that every side is asked before the first round."""
