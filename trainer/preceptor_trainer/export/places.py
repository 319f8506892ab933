"""Where an export goes: refused before any work where it cannot, there only when whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_contracts.files import sync_folder


def check_place(target: Path, *, bytes_needed: int) -> None:
    """Makes sure that `target` can be written.

    Args:
        target: File or folder to make.
        bytes_needed: Estimate of its size.

    Raises:
        InvalidInput: It exists, or the folder that it shall lie in does not.
        PrerequisiteError: The disk has too little room.
    """
    if target.exists() or target.is_symlink():
        raise InvalidInput(f"{target} exists; nothing is overwritten.", code="exists", hint="Choose another name.")
    if not target.parent.is_dir():
        raise InvalidInput(f"Folder {str(target.parent)!r} does not exist.", hint=f"Make it: mkdir -p {target.parent}")
    free = shutil.disk_usage(target.parent).free
    if free < bytes_needed:
        raise PrerequisiteError(
            f"{target} needs about {gib(bytes_needed)}, but only {gib(free)} are free in {str(target.parent)!r}.",
            code="disk_full",
            hint="Free some room, or choose another disk.",
        )


@contextmanager
def written_whole(target: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Gives a partial path to write to, and renames it to `target` where the block ends well; else nothing is left.

    What a killed process left under the partial name is removed. Two processes cannot write the same target.

    Raises:
        PreceptorError: Another process writes it, or the disk refuses.
    """
    partial = target.with_name(f".{target.name}.partial")
    handle = _claim(partial, is_folder=is_folder)
    try:
        yield partial
        _sync(partial)
        if target.exists():
            raise InvalidInput(f"{target} appeared meanwhile; nothing is overwritten.", code="exists")
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise PreceptorError(
            f"{target} cannot be written: {error.strerror or error}.", code="write_failed", hint="Nothing was left."
        ) from error
    finally:
        _remove(partial)
        os.close(handle)


def gib(count: float) -> str:
    """Writes a number of bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def _claim(partial: Path, *, is_folder: bool) -> int:
    """Makes the partial path anew and locks it; the kernel frees the lock when this process dies."""
    if partial.exists():
        handle = _lock(partial)
        _remove(partial)
        os.close(handle)
    try:
        if is_folder:
            partial.mkdir()
        else:
            partial.touch(exist_ok=False)
        return _lock(partial)
    except OSError as error:
        raise PreceptorError(f"{partial.parent} cannot be written: {error.strerror}.", code="write_failed") from error


def _lock(partial: Path) -> int:
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise PreceptorError(f"Another process is writing {partial}.", code="busy", hint="Wait for it.") from error
    return handle


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _sync(partial: Path) -> None:
    for path in sorted(partial.rglob("*")) if partial.is_dir() else [partial]:
        if path.is_file():
            # safetensors makes files that nobody else may read; the engine may be another user.
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
