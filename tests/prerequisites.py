"""What a test needs and this machine may lack: skipped on a laptop, failed in CI, where nothing may be missing."""

from __future__ import annotations

import os

import pytest


def in_ci() -> bool:
    """Says whether a missing prerequisite is a fault of the set-up."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def require(present: object, sentence: str, *, everywhere: bool = True) -> None:
    """Goes on where `present` is true; `sentence` says what is missing and how to get it.

    A GPU and a Docker engine cannot be had `everywhere`: without them a test is skipped in CI too.
    """
    if present:
        return
    if in_ci() and everywhere:
        pytest.fail(f"CI=true and a prerequisite is missing: {sentence}", pytrace=False)
    pytest.skip(sentence)
