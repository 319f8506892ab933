"""A folder to prepare in, beside the runs, so that a finished preparation becomes a run by a rename."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preceptor_contracts.errors import PreceptorError

_PREFIX = ".preparing-"
_STALE_S = 3600.0


@contextmanager
def workplace(root: Path) -> Iterator[Path]:
    """Makes an empty folder in `root` and takes it away afterwards, unless it was renamed.

    What a killed process left behind is taken away too, an hour later: the kernel has freed its lock by then.

    Raises:
        PreceptorError: Nothing can be written there, or the disk is full.
    """
    existed = root.exists()
    folder = root / f"{_PREFIX}{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise PreceptorError(
            f"{root} cannot be written: {error.strerror}.", hint="Set RUNS_DIR to a folder of yours."
        ) from error
    _sweep(root)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PreceptorError(
                f"There is no space left for preparing in {root}.",
                code="disk_full",
                hint="Preparing needs about three times the data file's size there.",
            ) from error
        raise
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                root.rmdir()


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < _STALE_S:
                continue
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
