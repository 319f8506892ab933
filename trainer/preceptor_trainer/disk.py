"""What cannot be written, told as a sentence: a full disk is a person's to mend, and no bug."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from preceptor_contracts.errors import PreceptorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_told(go_on: str) -> Iterator[None]:
    """Turns a full disk, wherever in the block it shows, into a sentence.

    Args:
        go_on: The command that goes on from what is whole.

    Raises:
        PreceptorError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise not_written(str(error.filename or "A file"), error, go_on) from error


def not_written(what: str, error: Exception, go_on: str) -> PreceptorError:
    """Says that something could not be written and how to go on."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return PreceptorError(
        f"{what} could not be written: {reason}.",
        code="not_written",
        hint=f"Free space there, then `preceptor-trainer {go_on}`: it goes on from what is whole.",
    )
