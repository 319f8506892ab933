"""Lines of a file that is too long to be held: written one by one, read by their number."""

from __future__ import annotations

import hashlib
import os
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 20


class LineWriter:
    """Writes lines, hashes them and remembers where each ends; 8 bytes of memory a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self._ends = array("Q")
        self._size = 0

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, line: bytes) -> None:
        """Writes one line, its line feed included."""
        self._stream.write(line)
        self._digest.update(line)
        self._size += len(line)
        self._ends.append(self._size)

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._size

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()

    def lines(self) -> Lines:
        """Opens what was written."""
        return Lines(self.path, np.frombuffer(self._ends, dtype=np.uint64))


class Lines:
    """A written file, read line by line or at any place; nothing of it is held.

    Args:
        path: Not changed while this is in use; it may be renamed or removed.
        ends: Byte after each line.
    """

    def __init__(self, path: Path, ends: NDArray[np.uint64]) -> None:
        self.path = path
        self._ends = ends
        # Not mapped: pages of a map that were touched would count as this process's memory.
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, at: int) -> bytes:
        begin = int(self._ends[at - 1]) if at else 0
        return os.pread(self._handle, int(self._ends[at]) - begin, begin)

    def __iter__(self) -> Iterator[bytes]:
        # By position, so that two iterations do not disturb each other.
        begin, held = 0, b""
        while piece := os.pread(self._handle, _PIECE, begin):
            begin += len(piece)
            *whole, held = (held + piece).split(b"\n")
            yield from (line + b"\n" for line in whole)


def read_lines(path: Path) -> tuple[Lines, str]:
    """Opens a file of lines and hashes it, in one pass."""
    digest, ends, size = hashlib.sha256(), array("Q"), 0
    with path.open("rb") as stream:
        for line in stream:
            digest.update(line)
            size += len(line)
            ends.append(size)
    return Lines(path, np.frombuffer(ends, dtype=np.uint64)), digest.hexdigest()
