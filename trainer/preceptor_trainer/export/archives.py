"""An adapter's folder as one file, the same bytes each time; unpacked as if a stranger had packed it."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.files import sha256_file
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import PICKLED, AdapterFolder, read_adapter, verify_files
from preceptor_contracts.served_names import adapter_domain

from preceptor_trainer.export.bases import load_weights, open_base, with_adapter
from preceptor_trainer.export.places import check_place, gib, written_whole
from preceptor_trainer.registry.model_card import ADAPTER, CARD, card_of
from preceptor_trainer.settings import TrainerSettings

_MOST_FILES = 10_000
"""Members of an archive; an adapter has 4, and one for each of its exams."""
_REPORTS = "reports"
_UNPACKED = ".unpacked-"
_STALE_S = 24 * 3600


class ArchiveReport(Frozen):
    """What an archive holds, and how it was verified."""

    adapter: str
    out: str
    bytes: int
    sha256: str
    canary_deviation: float | None
    """Mean, in nats, of the unpacked adapter on its base model; null where `BASE_MODEL` is another one."""
    canary_separation: float
    """Nats between adapter and base; a quarter of it is allowed."""


def export_archive(settings: TrainerSettings, adapter: AdapterFolder, out: Path) -> ArchiveReport:
    """Packs an adapter, unpacks what was packed, and asks that the canary.

    Raises:
        InvalidInput: `out` exists.
        PreceptorError: What was unpacked is not the adapter; nothing is left then.
    """
    size = sum(path.stat().st_size for path in adapter.path.rglob("*") if path.is_file())
    # Packed and, for the verification, unpacked beside it.
    check_place(out, bytes_needed=2 * size)
    with written_whole(out) as partial:
        with partial.open("wb") as stream:
            pack(adapter, card_of(settings, adapter, ADAPTER), stream)
        with unpacked(partial, out.parent) as copy:
            verify_files(copy)
            deviation = ask_canary(settings, copy)
    return ArchiveReport(
        adapter=adapter.path.name,
        out=str(out),
        bytes=out.stat().st_size,
        sha256=sha256_file(out),
        canary_deviation=deviation,
        canary_separation=adapter.manifest.canary.separation,
    )


def pack(adapter: AdapterFolder, card: str, stream: IO[bytes]) -> None:
    """Writes a tar.gz: sorted, without times, owners and modes, so that equal adapters make equal bytes.

    Args:
        adapter: Its whole folder, reports too.
        card: Put under `reports/` in place of the one that is there: it tells all exams.
        stream: Where to.
    """
    name = adapter.path.name
    files = {
        path.relative_to(adapter.path).as_posix(): path
        for path in adapter.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for inside in sorted({*files, f"{_REPORTS}/{CARD}"}):
            member = tarfile.TarInfo(f"{name}/{inside}")
            member.mode = 0o644
            if inside == f"{_REPORTS}/{CARD}":
                text = card.encode()
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
            else:
                member.size = files[inside].stat().st_size
                with files[inside].open("rb") as source:
                    tar.addfile(member, source)


@contextmanager
def unpacked(archive: Path, beside: Path) -> Iterator[AdapterFolder]:
    """Unpacks an archive into a folder of its own until the block ends, and reads its manifest.

    Args:
        archive: File to read.
        beside: Folder on whose disk to unpack.

    Raises:
        InvalidInput: It is no whole archive of one adapter, or holds what an adapter has no use for.
    """
    for stale in beside.glob(f"{_UNPACKED}*"):
        # Only a kill leaves one; another process may be at work in a younger one.
        if time.time() - stale.stat().st_mtime > _STALE_S:
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=_UNPACKED) as place:
        try:
            with tarfile.open(archive, mode="r:gz") as tar:
                members = _harmless(tar, archive, room=shutil.disk_usage(beside).free)
                tar.extractall(place, members, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(
                f"{archive} is no whole archive: {error}.", code="archive_invalid", hint="Copy it again."
            ) from error
        except OSError as error:
            raise PreceptorError(f"{archive} cannot be unpacked: {error.strerror or error}.") from error
        name = PurePosixPath(members[0].name).parts[0]
        yield read_adapter(Path(place) / name)


def ask_canary(settings: TrainerSettings, adapter: AdapterFolder) -> float | None:
    """Loads an adapter on its base model and asks the canary.

    Returns:
        Its deviation in nats; None where `BASE_MODEL` is another base model than the adapter's, so that nobody can ask.

    Raises:
        PreceptorError: It does not answer as trained.
    """
    from preceptor_trainer.canary import ask
    from preceptor_trainer.export.merging import check_canary

    try:
        base = open_base(settings, adapter.manifest)
    except InvalidInput as error:
        if error.code == "base_mismatch":
            return None
        raise
    canary = adapter.manifest.canary
    observed = ask(with_adapter(load_weights(base, exact=False), adapter.path), canary)
    check_canary(observed, canary, f"{adapter.path.name!r}")
    return canary.deviation(observed)


def _harmless(tar: tarfile.TarFile, archive: Path, *, room: int) -> list[tarfile.TarInfo]:
    """Reads the members, and refuses at the first that is not a plain file of one adapter's folder."""
    members: list[tarfile.TarInfo] = []
    total = 0
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if member.isdir() and len(parts) <= 2:
            continue
        why = None
        if not member.isfile():
            why = "is no plain file"
        elif member.name.startswith("/") or ".." in parts or "\\" in member.name:
            why = "leads out of the folder"
        elif not adapter_domain(parts[0]) or (members and parts[0] != PurePosixPath(members[0].name).parts[0]):
            why = "is not in one adapter's folder"
        elif len(parts) != 2 and (len(parts) != 3 or parts[1] != _REPORTS):
            why = "is not where an adapter has files"
        elif PurePosixPath(member.name).suffix.lower() in PICKLED:
            why = "is a pickle, which runs code when loaded"
        elif any(each.name == member.name for each in members):
            why = "is there twice"
        if why:
            raise InvalidInput(
                f"{archive}: {member.name!r} {why}; nothing was unpacked.",
                code="archive_invalid",
                hint="Take an archive that `preceptor-trainer` made.",
            )
        total += member.size
        members.append(member)
        if total > room or len(members) > _MOST_FILES:
            raise InvalidInput(
                f"{archive} holds more than {gib(total)} or {len(members)} files; {gib(room)} are free.",
                code="archive_invalid",
            )
    if not members:
        raise InvalidInput(f"{archive} holds no files.", code="archive_invalid")
    return members
