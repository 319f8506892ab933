"""What a test needs and this machine may lack: skipped on a laptop, failed in CI, where nothing may be missing."""

from __future__ import annotations

import os

import pytest


def in_ci() -> bool:
    """Says whether a missing prerequisite is a fault of the set-up."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def require(present: object, sentence: str, *, gpu: bool = False) -> None:
    """Goes on where `present` is true; `sentence` says what is missing and how to get it. A GPU is never a must."""
    if present:
        return
    if in_ci() and not gpu:
        pytest.fail(f"CI=true and a prerequisite is missing: {sentence}", pytrace=False)
    pytest.skip(sentence)
