"""Reads an archive to its end, compares it with its manifest, and on the way puts it where it can be swapped in."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from .archive import CHUNK, FORMAT, FURTHER, HEAD, MANIFEST, VOLUMES, Manifest, Refused

STAGING = ".restore.partial"
NEW = "new"
NAMES = "names.json"
_SHAPE: dict[str, type] = {
    "made_at": str,
    "volumes": dict,
    "files": dict,
    "links": dict,
    "dropped": list,
    "remarks": list,
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)


class Place(NamedTuple):
    """Where a member belongs."""

    volume: str
    """Empty for a file that is no volume's."""
    path: str
    """Empty for the volume itself."""


class Unpacker:
    """Puts members beside what the volumes hold, where nobody looks.

    Args:
        root: Folder of the volumes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: list[tuple[Path, tarfile.TarInfo]] = []

    def target(self, at: Place) -> Path | None:
        """Where a member goes; files that are no volume's go nowhere."""
        return self._root / at.volume / STAGING / NEW / at.path if at.volume else None

    def place(self, member: tarfile.TarInfo, target: Path) -> None:
        """Makes a folder or a link, or gives a file that was written its owner, mode and time."""
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            self._folders.append((target, member))
            return
        if member.issym():
            target.symlink_to(member.linkname)
        _dress(target, member)

    def finish(self, manifest: Manifest) -> None:
        """Takes away what the manifest drops, and notes the names that each volume will have."""
        for name in manifest["dropped"]:
            _, volume, path = name.split("/", 2)
            remove(self._root / volume / STAGING / NEW / path)
        # Only now: what is written into a folder changes its time.
        for target, member in self._folders:
            if target.is_dir():
                _dress(target, member)
        for volume in manifest["volumes"]:
            staging = self._root / volume / STAGING
            (staging / NAMES).write_text(json.dumps(sorted(os.listdir(staging / NEW))))


def read(stream: IO[bytes], unpacker: Unpacker | None = None) -> Manifest:
    """Reads an archive; without an unpacker nothing is written.

    Raises:
        Refused: It is not whole, not ours, of a newer format, or has what no backup has.
    """
    try:
        with gzip.GzipFile(fileobj=stream) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            _check_head(tar)
            manifest = _read_members(tar, unpacker)
            # gzip's own sum stands at the very end.
            while packed.read(CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused(f"It is no whole backup of Preceptor: {str(error).rstrip('.')}.") from error
    return manifest


def remove(path: Path) -> None:
    """Removes whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_members(tar: tarfile.TarFile, unpacker: Unpacker | None) -> Manifest:
    """Reads what follows the head, each member checked before it is unpacked."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    seen: set[str] = set()
    for member in iter(tar.next, None):
        if member.name == MANIFEST:
            manifest = _parse(tar, member, _SHAPE)
            _compare(manifest, files, links, seen)
            if tar.next():
                raise Refused("It is damaged: something follows its manifest.")
            if unpacker:
                unpacker.finish(manifest)
            return manifest
        if member.name in seen:
            raise Refused(f"It has {member.name!r} twice.")
        at = _place_of(member, links)
        target = unpacker.target(at) if unpacker else None
        if member.isreg():
            files[member.name] = _copy(tar, member, target)
        elif member.issym():
            links[member.name] = member.linkname
        if unpacker and target:
            unpacker.place(member, target)
        seen.add(member.name)
    raise Refused("It was cut: there is no manifest at its end.")


def _check_head(tar: tarfile.TarFile) -> None:
    """Reads the first member, by which an archive is known as ours and as of a format that we know."""
    member = tar.next()
    if member is None or member.name != HEAD:
        raise Refused(f"It is no backup of Preceptor: it does not begin with {HEAD!r}.")
    found = _parse(tar, member, {})["format"]
    if found > FORMAT:
        raise Refused(f"It has format {found}; this version of Preceptor reads up to {FORMAT}. Take a newer version.")


def _parse(tar: tarfile.TarFile, member: tarfile.TarInfo, shape: dict[str, type]) -> Manifest:
    content = tar.extractfile(member)
    try:
        found = json.loads(content.read() if content else b"")
    except ValueError as error:
        raise Refused(f"It is damaged: {member.name!r} is no JSON.") from error
    for name, kind in {"format": int, **shape}.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            raise Refused(f"It is damaged: {member.name!r} has no {name!r}.")
    manifest: Manifest = found
    return manifest


def _compare(manifest: Manifest, files: dict[str, str], links: dict[str, str], seen: set[str]) -> None:
    """Holds what was read against what was written."""
    wrong = sorted(name for name, _ in {*manifest["files"].items()} ^ {*files.items()})
    wrong += sorted(name for name, _ in {*manifest["links"].items()} ^ {*links.items()})
    wrong += sorted({f"volumes/{name}" for name in manifest["volumes"]} ^ {name for name in seen if _is_volume(name)})
    # A volume itself is never dropped.
    wrong += [name for name in manifest["dropped"] if name not in seen or name.count("/") < 2]
    if wrong:
        raise Refused(f"It is damaged: {wrong[0]!r} is not what its manifest says.")


def _is_volume(name: str) -> bool:
    return name.count("/") == 1


def _place_of(member: tarfile.TarInfo, links: dict[str, str]) -> Place:
    """Says where a member belongs.

    Raises:
        Refused: Nowhere.
    """
    name, parts = member.name, member.name.split("/")
    if name in FURTHER and member.isreg():
        return Place("", name)
    above = {"/".join(parts[:length]) for length in range(len(parts))}
    if {"", ".", ".."} & set(parts) or above & links.keys():
        raise Refused(f"{name!r} in it leads out of the volumes.")
    if member.type not in _PLAIN:
        raise Refused(f"{name!r} in it is neither a file nor a folder nor a link.")
    if parts[0] != "volumes" or len(parts) < 2 or parts[1] not in VOLUMES or (len(parts) == 2 and not member.isdir()):
        raise Refused(f"{name!r} in it belongs to no volume of the stack.")
    inside = "/".join(parts[2:])
    # Held against a folder that is not there, so that nothing which is there can mislead it.
    tarfile.data_filter(member.replace(name=inside or ".", deep=False), f"/backup/{parts[1]}")
    return Place(parts[1], inside)


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path | None) -> str:
    """Reads a file, writes it where there is somewhere to, and returns its hash."""
    source = tar.extractfile(member)
    digest = hashlib.sha256()
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(target or os.devnull, "wb") as sink:
        while source and (chunk := source.read(CHUNK)):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()


def _dress(path: Path, member: tarfile.TarInfo) -> None:
    """Gives a file its mode, its time and, where that is ours to give, its owner."""
    if not member.issym():
        path.chmod(member.mode & 0o777)
        os.utime(path, (member.mtime, member.mtime))
    if os.geteuid() == 0:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
