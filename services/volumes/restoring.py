"""Replaces what the volumes hold: all is unpacked beside the old, then said to be whole, then swapped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .archive import VOLUMES, Manifest, Refused
from .reading import NAMES, NEW, STAGING, Unpacker, read, remove

COMMITTED = "committed"


def restore(root: Path, stream: IO[bytes]) -> None:
    """Puts an archive in the place of what is there; a volume that it holds nothing of stays as it is.

    A kill leaves all of the old, or what the next `restore` or `settle` makes all of the new.

    Args:
        root: Folder of the volumes; nobody uses them.
        stream: The archive.

    Raises:
        Refused: The archive is not good, or the disk is full. The volumes are as they were.
    """
    with _alone(root):
        _settle(root)
        try:
            manifest = read(stream, Unpacker(root))
        except OSError as error:
            _drop(root)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refused("No room is left on the disk of Docker's volumes.") from error
            raise
        except BaseException:
            _drop(root)
            raise
        _commit(root, manifest)
        _settle(root)


def settle(root: Path) -> bool:
    """Finishes a restoring that was committed, or takes away one that was not; tells which of the two."""
    with _alone(root):
        return _settle(root)


def is_unfinished(root: Path) -> bool:
    """Tells whether the volumes may hold half of the old and half of the new."""
    return any((root / name / STAGING / COMMITTED).is_file() for name in VOLUMES)


def _settle(root: Path) -> bool:
    is_committed = is_unfinished(root)
    if is_committed:
        for name in VOLUMES:
            if (root / name / STAGING / NAMES).is_file():
                _swap(root / name)
        os.sync()
    _drop(root)
    return is_committed


def _drop(root: Path) -> None:
    """Takes away the places for unpacking; the mark first, for half of such a place cannot be swapped again."""
    places = [root / name / STAGING for name in VOLUMES]
    for path in [*(place / COMMITTED for place in places), *places]:
        remove(path)


def _commit(root: Path, manifest: Manifest) -> None:
    """Says in one place, and on disk, that all is unpacked: from here on there is no way back."""
    os.sync()
    for name in sorted(manifest["volumes"])[:1]:
        (root / name / STAGING / COMMITTED).touch()
    os.sync()


def _swap(volume: Path) -> None:
    """Moves old entries away and new ones up, from wherever an earlier try broke off."""
    staging = volume / STAGING
    new = staging / NEW
    names = json.loads((staging / NAMES).read_text())
    old = Path(tempfile.mkdtemp(dir=staging, prefix="old-"))
    for entry in list(volume.iterdir()):
        # Where the name is not among those to be moved up any more, the entry is the new one.
        if entry != staging and (entry.name not in names or os.path.lexists(new / entry.name)):
            entry.rename(old / entry.name)
    for entry in list(new.iterdir()):
        entry.rename(volume / entry.name)
    status = new.stat()
    volume.chmod(stat.S_IMODE(status.st_mode))
    if os.geteuid() == 0:
        os.chown(volume, status.st_uid, status.st_gid)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Waits for a container that is still at it, e.g. because the one who started it was killed."""
    handle = os.open(root / VOLUMES[0], os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
