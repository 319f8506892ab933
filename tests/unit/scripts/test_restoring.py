"""What `make restore` does inside the container, on folders: all of the old or all of the new, whatever happens."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.volumes import reading, restoring
from services.volumes.archive import HEAD, MANIFEST, Refused
from services.volumes.reading import read
from services.volumes.restoring import is_unfinished, restore, settle
from tests.unit.scripts.volumes_fixtures import contents, fill, saved


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours that follows it counts."""


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """A backup of another day."""
    return saved(fill(tmp_path / "another-day", "two"))


def packed(members: list[tarfile.TarInfo | tuple[str, bytes]], *, head: dict[str, object] | None = None) -> bytes:
    """An archive by another hand, with the manifest that fits it."""
    stream = io.BytesIO()
    first = json.dumps({"format": 1, "made_at": ""} if head is None else head).encode()
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member in [(HEAD, first), *members]:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                if member.issym():
                    links[member.name] = member.linkname
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if name != HEAD:
                files[name] = hashlib.sha256(data).hexdigest()
        manifest = {"format": 1, "made_at": "", "files": files, "links": links, "dropped": [], "remarks": []}
        manifest["volumes"] = {"runs": {"files": len(files), "bytes": 0}}
        data = json.dumps(manifest).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


RUNS = special("volumes/runs", tarfile.DIRTYPE)
TRAVERSALS: dict[str, list[tarfile.TarInfo | tuple[str, bytes]]] = {
    "parent": [RUNS, ("volumes/runs/../../../escaped", b"x")],
    "top": [RUNS, ("../escaped", b"x")],
    "absolute": [RUNS, ("/volumes/runs/escaped", b"x")],
    "no volume": [RUNS, ("volumes/hf-cache/escaped", b"x")],
    "not below volumes": [RUNS, ("etc/escaped", b"x")],
    "volume as a file": [("volumes/runs", b"x")],
    "volume as a link": [special("volumes/runs", tarfile.SYMTYPE, "../..")],
    "absolute link": [RUNS, special("volumes/runs/escaped", tarfile.SYMTYPE, "/etc/passwd")],
    "link out": [RUNS, special("volumes/runs/escaped", tarfile.SYMTYPE, "../gateway-data/gateway.db")],
    "below a link": [RUNS, special("volumes/runs/a", tarfile.SYMTYPE, "."), ("volumes/runs/a/escaped", b"x")],
    "hard link": [RUNS, special("volumes/runs/escaped", tarfile.LNKTYPE, "volumes/runs/x")],
    "device": [RUNS, special("volumes/runs/escaped", tarfile.CHRTYPE)],
    "twice": [RUNS, ("volumes/runs/x", b"x"), ("volumes/runs/x", b"y")],
    "link, then file": [RUNS, special("volumes/runs/x", tarfile.SYMTYPE, "y"), ("volumes/runs/x", b"y")],
    "another spelling": [RUNS, special("volumes/runs/x", tarfile.SYMTYPE, "y"), ("volumes/runs/./x", b"y")],
    "env as a link": [RUNS, special(".env", tarfile.SYMTYPE, "/etc/passwd")],
    "volume without its folder": [("volumes/adapters/x", b"x")],
}


def test_the_hand_that_packs_traversals_packs_good_archives(elsewhere: Path) -> None:
    restore(elsewhere, io.BytesIO(packed([RUNS, ("volumes/runs/x", b"x"), (".env", b"KEY=1")])))
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["x"]


@pytest.mark.parametrize("members", TRAVERSALS.values(), ids=TRAVERSALS)
def test_what_leads_out_is_refused_and_nothing_is_touched(
    volumes: Path, members: list[tarfile.TarInfo | tuple[str, bytes]]
) -> None:
    before = contents(volumes.parent)
    hostile = packed(members)
    with pytest.raises(Refused):
        read(io.BytesIO(hostile))
    with pytest.raises(Refused):
        restore(volumes, io.BytesIO(hostile))
    assert contents(volumes.parent) == before


def test_a_restore_replaces_what_is_there(volumes: Path, archive: bytes) -> None:
    restore(volumes, io.BytesIO(archive))
    assert contents(volumes) == contents(volumes.parent / "another-day")


def test_a_volume_that_the_archive_has_nothing_of_stays(volumes: Path) -> None:
    before = contents(volumes)
    restore(volumes, io.BytesIO(packed([RUNS, ("volumes/runs/x", b"x")])))
    after = contents(volumes)
    assert {name for name in after if name.startswith("runs/")} == {"runs/x"}
    kept = {name: value for name, value in before.items() if not name.startswith("runs")}
    assert {name: value for name, value in after.items() if not name.startswith("runs")} == kept


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.99, 0.999])
def test_a_cut_archive_is_refused_and_nothing_is_touched(volumes: Path, archive: bytes, share: float) -> None:
    before = contents(volumes)
    with pytest.raises(Refused):
        restore(volumes, io.BytesIO(archive[: int(len(archive) * share)]))
    assert contents(volumes) == before


@pytest.mark.parametrize("lacking", [1, 4, 8])
def test_an_archive_without_its_last_bytes_is_refused(archive: bytes, lacking: int) -> None:
    with pytest.raises(Refused):
        read(io.BytesIO(archive[:-lacking]))


def test_an_altered_byte_is_noticed(volumes: Path, archive: bytes) -> None:
    before = contents(volumes)
    refused = 0
    # Behind gzip's header, whose time and flags mean nothing.
    for place in range(10, len(archive), len(archive) // 40):
        altered = bytearray(archive)
        altered[place] ^= 0x10
        # Some bits say in another way where the same zeros are to be copied from.
        with suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(altered) == gzip.decompress(archive):
                continue
        with pytest.raises(Refused):
            restore(volumes, io.BytesIO(altered))
        refused += 1
    assert refused >= 20
    assert contents(volumes) == before


def test_content_that_is_not_the_manifests_is_named(archive: bytes) -> None:
    altered = gzip.compress(gzip.decompress(archive).replace(b"two" * 1000, b"TWO" * 1000))
    with pytest.raises(Refused, match=r"adapter_model\.safetensors"):
        read(io.BytesIO(altered))


def test_a_file_that_the_manifest_does_not_know_is_named(archive: bytes) -> None:
    source, target = io.BytesIO(archive), io.BytesIO()
    with tarfile.open(fileobj=source) as old, tarfile.open(fileobj=target, mode="w:gz") as new:
        for member in old:
            if member.name == MANIFEST:
                new.addfile(tarfile.TarInfo("volumes/runs/stranger"), io.BytesIO())
            new.addfile(member, old.extractfile(member))
    with pytest.raises(Refused, match="stranger"):
        read(io.BytesIO(target.getvalue()))


@pytest.mark.parametrize("data", [b"", b"no archive", gzip.compress(b"no tar"), b"\0" * 2000])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(Refused, match=r"no (whole )?backup"):
        read(io.BytesIO(data))


def test_somebody_elses_archive_is_refused() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("photo.jpg"), io.BytesIO())
    with pytest.raises(Refused, match=HEAD):
        read(io.BytesIO(stream.getvalue()))


def test_a_newer_format_is_refused_by_its_number(volumes: Path) -> None:
    newer = packed([special("something/new", tarfile.FIFOTYPE)], head={"format": 2, "made_at": ""})
    with pytest.raises(Refused, match=r"format 2.*up to 1"):
        restore(volumes, io.BytesIO(newer))


def kill_at(patch: pytest.MonkeyPatch, time: int) -> Callable[[], int]:
    """Kills at the so-manieth move; the answer tells how many were begun."""
    moves = 0
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == time:
            raise Killed
        return real(path, target)

    patch.setattr(Path, "rename", rename)
    return lambda: moves


@pytest.fixture
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests restore a hundred times, and a kill loses nothing that was written."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.mark.usefixtures("no_power_cuts")
@pytest.mark.parametrize("repair", ["settle", "restore"])
def test_a_kill_at_any_move_leaves_what_a_second_run_makes_new(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch, repair: str
) -> None:
    new = contents(tmp_path / "another-day")
    for time in range(1, 100):
        volumes = fill(tmp_path / f"{repair}-{time}")
        with monkeypatch.context() as patch:
            count = kill_at(patch, time)
            try:
                restore(volumes, io.BytesIO(archive))
            except Killed:
                assert is_unfinished(volumes)
            else:
                break
        if repair == "settle":
            assert settle(volumes)
        else:
            restore(volumes, io.BytesIO(archive))
        assert contents(volumes) == new
    # Every entry is moved away, and as many are moved up.
    assert count() == time - 1 >= 20
    assert contents(volumes) == new


@pytest.mark.usefixtures("no_power_cuts")
@pytest.mark.parametrize("time", [1, 2, 3, 4])
def test_a_kill_while_tidying_up_leaves_the_new(
    volumes: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch, time: int
) -> None:
    removed: list[Path] = []

    def half(path: Path) -> None:
        removed.append(path)
        remove_tree(path / "new")
        if len(removed) == time:
            raise Killed
        remove_tree(path)

    remove_tree = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            restore(volumes, io.BytesIO(archive))
    settle(volumes)
    assert contents(volumes) == contents(volumes.parent / "another-day")


def test_a_kill_between_unpacking_and_swapping_leaves_the_old(
    volumes: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(volumes)
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_commit", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            restore(volumes, io.BytesIO(archive))
    assert (volumes / "runs" / reading.STAGING / "new/two/events.jsonl").is_file()
    assert not is_unfinished(volumes)
    there = {name: value for name, value in contents(volumes).items() if reading.STAGING not in name}
    assert there == before
    assert settle(volumes) is False
    assert contents(volumes) == before
    restore(volumes, io.BytesIO(archive))
    assert contents(volumes) == contents(volumes.parent / "another-day")


def test_what_a_service_wrote_into_half_a_restore_is_replaced(
    volumes: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            restore(volumes, io.BytesIO(archive))
    # Somebody started the gateway, which found no aliases and wrote some.
    (volumes / "gateway-data/aliases.json").write_text("{}")
    assert settle(volumes)
    assert contents(volumes) == contents(volumes.parent / "another-day")


def test_a_full_disk_leaves_the_old_and_says_so(volumes: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(volumes)

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr(reading, "_dress", full)
    with pytest.raises(Refused, match="No room"):
        restore(volumes, io.BytesIO(archive))
    assert contents(volumes) == before
