"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preceptor_contracts.errors import PreceptorError


@contextmanager
def only_one(folder: Path, *, doing: str, code: str) -> Iterator[None]:
    """Keeps a second process out of a folder; the kernel frees it when this one dies.

    Args:
        folder: Must exist.
        doing: What the other one is at, for the message, e.g. `working on run 'x'`.
        code: The error's.

    Raises:
        PreceptorError: Another process is at it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PreceptorError(f"Another process is {doing}.", code=code, hint="Wait for it or stop it.") from error
        yield
    finally:
        os.close(handle)
