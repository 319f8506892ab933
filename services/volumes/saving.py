"""Writes the archive. The stack may run meanwhile: files grow, come and go, databases are written."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import posixpath
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO
from urllib.parse import quote

from .archive import FORMAT, FURTHER, HEAD, MANIFEST, VOLUMES, Manifest, Refused, Size

LEFT_OUT = ("*.partial", "*.removed", "*.lock", ".unpacked-*", "SmolLM2-135M-Instruct")
"""The last is the embedded base model, which the engine makes again; what a training of all weights made stays in."""
LOCKED_S = 60.0
"""How long a database may stay locked by those who write it."""
_SQLITE = b"SQLite format 3\0"
_COPY = ".copy-"


def save(root: Path, further: IO[bytes] | None, out: IO[bytes]) -> None:
    """Writes the archive of all volumes.

    Args:
        root: Folder of the volumes.
        further: A tar of files to put in, if any.
        out: Where to.

    Raises:
        Refused: A database stays locked, or `further` has what a backup has no place for.
    """
    with (
        # Weights hardly get smaller: a better compression would cost time alone.
        gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        packer = Packer(tar)
        if further:
            packer.add_further(further)
        # The second look finds what came during the first, e.g. the archive that an adapter went into.
        for name in VOLUMES * 2:
            packer.add_volume(name, root / name)
        packer.finish()


def walk(folder: Path) -> Iterator[Path]:
    """Finds what is to be saved, a folder's files before its folders.

    So a run's `events.jsonl` never vouches for a checkpoint that was read before it was whole.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: (entry.is_dir(follow_symlinks=False), entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        path = Path(entry.path)
        if any(fnmatchcase(entry.name, pattern) for pattern in LEFT_OUT) or _is_journal(path):
            continue
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path)


class Packer:
    """Writes members and remembers what the manifest must say of them."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._places: dict[str, Path] = {}
        self._short: set[str] = set()
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._manifest = Manifest(
            format=FORMAT, made_at=made_at, volumes={}, files={}, links={}, dropped=[], remarks=[]
        )
        self._write(HEAD, {"format": FORMAT, "made_at": made_at})

    def add_further(self, stream: IO[bytes]) -> None:
        """Takes over the files of a tar.

        Raises:
            Refused: A backup has no place for one.
        """
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.name in FURTHER else None
                if source is None:
                    raise Refused(f"{member.name!r} has no place in a backup; only {' and '.join(FURTHER)} have.")
                self._add_content(member, source)

    def add_volume(self, name: str, volume: Path) -> None:
        """Adds what is in a volume and not in the archive yet."""
        for path in walk(volume):
            if name not in self._manifest["volumes"]:
                self._manifest["volumes"][name] = Size(files=0, bytes=0)
                self._add(f"volumes/{name}", volume)
            inside = f"volumes/{name}/{path.relative_to(volume).as_posix()}"
            if inside not in self._places:
                self._add(inside, path)

    def finish(self) -> None:
        """Writes the manifest. What is gone by now is dropped: half of a folder must not come back."""
        gone = {name for name, path in self._places.items() if not os.path.lexists(path)}
        self._manifest["dropped"] = sorted(gone | self._short)
        self._write(MANIFEST, self._manifest)

    def _add(self, name: str, path: Path) -> None:
        """Adds one thing, or nothing where it went away; pipes and sockets are nothing either."""
        try:
            status = path.lstat()
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
            info.mtime = status.st_mtime
            if stat.S_ISDIR(status.st_mode):
                info.type = tarfile.DIRTYPE
                self._tar.addfile(info)
            elif stat.S_ISLNK(status.st_mode):
                self._add_link(info, os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                with self._opened(path, name) as source:
                    info.size = os.fstat(source.fileno()).st_size
                    self._add_content(info, source)
                size = self._manifest["volumes"][name.split("/")[1]]
                size["files"] += 1
                size["bytes"] += info.size
        except FileNotFoundError:
            return
        self._places[name] = path

    def _add_link(self, info: tarfile.TarInfo, target: str) -> None:
        volume = "/".join(info.name.split("/")[:2])
        met = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), target))
        if target.startswith("/") or not f"{met}/".startswith(f"{volume}/"):
            # Whoever unpacks refuses such a link, and the whole archive with it.
            self._manifest["remarks"].append(f"{info.name!r} is a link out of its volume: left out.")
            return
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(info)
        self._manifest["links"][info.name] = target

    def _add_content(self, info: tarfile.TarInfo, source: IO[bytes]) -> None:
        content = Exactly(source)
        self._tar.addfile(info, content)
        self._manifest["files"][info.name] = content.sha256
        if content.is_short:
            self._short.add(info.name)

    def _write(self, name: str, value: object) -> None:
        data = json.dumps(value).encode()
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        self._tar.addfile(info, io.BytesIO(data))

    @contextmanager
    def _opened(self, path: Path, name: str) -> Iterator[IO[bytes]]:
        """Opens a file; of a database a copy, on the volume's own disk, for it may not fit into memory."""
        if not _is_database(path):
            with path.open("rb") as stream:
                yield stream
            return
        for stale in path.parent.glob(f"{_COPY}*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=_COPY, suffix=".partial", ignore_cleanup_errors=True
        ) as place:
            copy = Path(place) / "copy"
            try:
                copy_database(path, copy)
            except sqlite3.DatabaseError as error:
                if path.exists():
                    self._manifest["remarks"].append(f"SQLite cannot read {name!r} ({error}): copied as it is.")
                copy = path
            with copy.open("rb") as stream:
                yield stream


class Exactly:
    """Gives as many bytes as it is asked for, whatever became of the file since its size was read, and hashes them."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self.is_short = False

    def read(self, count: int = -1, /) -> bytes:
        """Reads; zeros stand for what is gone."""
        data = self._source.read(count)
        if len(data) < count:
            self.is_short = True
            data += bytes(count - len(data))
        self._digest.update(data)
        return data

    @property
    def sha256(self) -> str:
        """Of all that was given."""
        return self._digest.hexdigest()


def copy_database(source: Path, target: Path) -> None:
    """Copies a database by SQLite's own backup: what is committed, all of it, and nothing else.

    Raises:
        Refused: It stays locked.
        DatabaseError: SQLite cannot read it.
    """
    deadline = time.monotonic() + LOCKED_S

    def watch(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise Refused(f"Database {str(source)!r} was locked for {LOCKED_S:.0f} s. Stop what writes it for so long.")

    with (
        closing(sqlite3.connect(f"file:{quote(os.fsencode(source))}?mode=rw", uri=True, timeout=0)) as held,
        closing(sqlite3.connect(target)) as copy,
    ):
        # Often, for one who writes all the time leaves short gaps.
        held.backup(copy, progress=watch, sleep=0.005)


def _is_database(path: Path) -> bool:
    """Tells an SQLite database by its first bytes."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _is_journal(path: Path) -> bool:
    """Tells what SQLite keeps beside a database in use; the copy that SQLite makes needs none."""
    base, _, kind = path.name.rpartition("-")
    return kind in ("wal", "shm", "journal") and _is_database(path.with_name(base))
