"""What `make backup` does inside the container, on folders: the stack goes on while it is saved."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from services.volumes import saving
from services.volumes.archive import Refused
from services.volumes.restoring import restore
from tests.house.tree import ROOT
from tests.unit.scripts.volumes_fixtures import ADAPTER, contents, manifest_of, rows, saved


def saved_while(volumes: Path, change: Callable[[], None]) -> bytes:
    """Saves, and changes something while the saver is in the middle of `runs/big`, whose header it has written."""
    (volumes / "runs/big").write_bytes(os.urandom(4 * 2**20))
    command = [sys.executable, "-m", "services.volumes", "save", "--root", str(volumes)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        # It cannot go on: the pipe holds far less than the file, which cannot be compressed.
        begin = process.stdout.read(2**20)
        change()
        rest = process.stdout.read()
    assert process.returncode == 0
    return begin + rest


def saved_elsewhere(volumes: Path) -> bytes:
    """Saves in a process of its own, as the container is: locks on files are between processes."""
    command = [sys.executable, "-m", "services.volumes", "save", "--root", str(volumes)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def saved_late(volumes: Path, name: str, change: Callable[[], None]) -> bytes:
    """Saves, and changes something once a member of that name was written."""

    class Watched(saving.Packer):
        def _add(self, at: str, path: Path) -> None:
            super()._add(at, path)
            if at == name:
                change()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "Packer", Watched)
        return saved(volumes)


def test_what_is_restored_is_what_was_saved(volumes: Path, elsewhere: Path) -> None:
    (volumes / "runs").chmod(0o750)
    (volumes / f"adapters/{ADAPTER}/preceptor.json").chmod(0o640)
    os.utime(volumes / f"adapters/{ADAPTER}/preceptor.json", (1_700_000_000.25, 1_700_000_000.25))
    before = contents(volumes)
    restore(elsewhere, io.BytesIO(saved(volumes)))
    assert contents(elsewhere) == before
    assert len(before) > 25
    assert contents(volumes) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root gives files away.")
def test_owners_are_kept(volumes: Path, elsewhere: Path) -> None:
    for path in (volumes / "adapters", *(volumes / "adapters").rglob("*")):
        os.chown(path, 10001, 10002, follow_symlinks=False)
    os.chown(volumes / "open-webui-data/cache/latest", 7, 7, follow_symlinks=False)
    restore(elsewhere, io.BytesIO(saved(volumes)))
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (elsewhere / "adapters").rglob("*")}
    assert owners == {(10001, 10002)}
    assert (elsewhere / "adapters").stat().st_uid == 10001
    assert (elsewhere / "runs").stat().st_uid == 0
    assert (elsewhere / "open-webui-data/cache/latest").lstat().st_uid == 7


def test_work_under_way_and_locks_are_left_out(volumes: Path, elsewhere: Path) -> None:
    before = contents(volumes)
    for name in (f"adapters/.{ADAPTER}.partial", f"adapters/.{ADAPTER}.removed", "runs/.unpacked-x"):
        (volumes / name).mkdir()
        (volumes / name / "half").write_text("half")
    (volumes / "adapters/.engine-hand-off.lock").touch()
    os.mkfifo(volumes / "runs/pipe")
    restore(elsewhere, io.BytesIO(saved(volumes)))
    assert contents(elsewhere).keys() == before.keys()


def test_a_link_out_of_its_volume_is_left_out_and_told(volumes: Path, elsewhere: Path) -> None:
    (volumes / "runs/passwords").symlink_to("/etc/passwd")
    (volumes / "runs/keys").symlink_to("../gateway-data/gateway.db")
    archive = saved(volumes)
    restore(elsewhere, io.BytesIO(archive))
    assert {"passwords", "keys"} & set(os.listdir(elsewhere / "runs")) == set()
    remarks = manifest_of(archive)["remarks"]
    assert [remark.split("'")[1] for remark in remarks] == ["volumes/runs/keys", "volumes/runs/passwords"]


def test_a_growing_file_is_saved_as_long_as_it_was(volumes: Path, elsewhere: Path) -> None:
    events = volumes / "runs/big"

    def grow() -> None:
        with events.open("ab") as stream:
            stream.write(b"more")

    archive = saved_while(volumes, grow)
    restore(elsewhere, io.BytesIO(archive))
    assert (elsewhere / "runs/big").read_bytes() + b"more" == events.read_bytes()


def test_a_file_that_got_shorter_is_dropped_and_all_else_is_whole(volumes: Path, elsewhere: Path) -> None:
    before = contents(volumes)
    archive = saved_while(volumes, lambda: os.truncate(volumes / "runs/big", 10))
    restore(elsewhere, io.BytesIO(archive))
    assert manifest_of(archive)["dropped"] == ["volumes/runs/big"]
    assert contents(elsewhere).keys() == before.keys()


def test_a_checkpoint_that_is_pruned_meanwhile_does_not_come_back_by_halves(volumes: Path, elsewhere: Path) -> None:
    runs = volumes / "runs"
    # One that was read before the change, and one that was not.
    (runs / "a/checkpoints/checkpoint-1").mkdir(parents=True)
    (runs / "a/checkpoints/checkpoint-1/weights").write_text("early")
    (runs / "z/checkpoints/checkpoint-1").mkdir(parents=True)
    (runs / "z/checkpoints/checkpoint-1/weights").write_text("late")

    def prune() -> None:
        shutil.rmtree(runs / "a/checkpoints/checkpoint-1")
        shutil.rmtree(runs / "z/checkpoints/checkpoint-1")

    restore(elsewhere, io.BytesIO(saved_late(volumes, "volumes/runs/a/checkpoints/checkpoint-1/weights", prune)))
    assert os.listdir(elsewhere / "runs/a/checkpoints") == []
    assert os.listdir(elsewhere / "runs/z/checkpoints") == []


def test_an_adapter_that_is_retired_meanwhile_comes_back_as_its_archive(volumes: Path, elsewhere: Path) -> None:
    adapters = volumes / "adapters"

    def retire() -> None:
        (adapters / f".archive/{ADAPTER}.tar.gz").write_text("all of it")
        (adapters / ADAPTER).rename(adapters / f".{ADAPTER}.removed")

    archive = saved_late(volumes, f"volumes/adapters/{ADAPTER}/preceptor.json", retire)
    restore(elsewhere, io.BytesIO(archive))
    assert sorted(os.listdir(elsewhere / "adapters")) == [".archive", ".versions.json"]
    assert (elsewhere / f"adapters/.archive/{ADAPTER}.tar.gz").read_text() == "all of it"


def test_events_are_read_before_the_checkpoints_that_they_vouch_for(volumes: Path) -> None:
    names = [path.relative_to(volumes / "runs/one").as_posix() for path in saving.walk(volumes / "runs/one")]
    assert names[:2] == ["events.jsonl", "checkpoints"]


def test_aliases_are_read_before_the_adapters_that_they_point_at(volumes: Path) -> None:
    names = list(manifest_of(saved(volumes))["files"])
    assert names.index("volumes/gateway-data/aliases.json") < names.index("volumes/adapters/.versions.json")


def test_a_database_in_use_is_saved_with_what_is_committed_and_no_more(volumes: Path, elsewhere: Path) -> None:
    with closing(sqlite3.connect(volumes / "open-webui-data/webui.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("INSERT INTO keys VALUES ('committed')")
        database.commit()
        # So that a copy of the file alone would lack it.
        assert b"committed" not in (volumes / "open-webui-data/webui.db").read_bytes()
        database.execute("INSERT INTO keys VALUES ('not committed')")
        archive = saved_elsewhere(volumes)
        database.rollback()
    restore(elsewhere, io.BytesIO(archive))
    assert rows(elsewhere / "open-webui-data/webui.db") == ["one", "committed"]
    assert sorted(os.listdir(elsewhere / "open-webui-data")) == ["cache", "webui.db"]


def test_a_database_that_is_written_all_the_time_is_saved_whole(volumes: Path, elsewhere: Path) -> None:
    stop = threading.Event()
    written = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(volumes / "gateway-data/gateway.db", timeout=30)) as database:
            while not stop.is_set():
                # Two rows or none.
                database.execute("INSERT INTO keys VALUES ('left')")
                database.execute("INSERT INTO keys VALUES ('right')")
                database.commit()
                written.set()
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(10)
        archives = [saved_elsewhere(volumes) for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    counts = []
    for archive in archives:
        restore(elsewhere, io.BytesIO(archive))
        found = rows(elsewhere / "gateway-data/gateway.db")
        assert found.count("left") == found.count("right")
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1], "The writer went on."


def test_a_database_that_stays_locked_is_named(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LOCKED_S", 0.1)
    with closing(sqlite3.connect(volumes / "gateway-data/gateway.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Refused, match=r"gateway\.db"):
            saved(volumes)
        database.rollback()
    assert sorted(os.listdir(volumes / "gateway-data")) == ["aliases.json", "gateway.db"]


def test_a_database_that_sqlite_cannot_read_is_copied_and_told(volumes: Path, elsewhere: Path) -> None:
    broken = b"SQLite format 3\0" + b"x" * 5000
    (volumes / "runs/broken.sqlite").write_bytes(broken)
    archive = saved(volumes)
    restore(elsewhere, io.BytesIO(archive))
    assert (elsewhere / "runs/broken.sqlite").read_bytes() == broken
    assert "volumes/runs/broken.sqlite" in str(manifest_of(archive)["remarks"])


def test_what_a_killed_backup_left_is_taken_away(volumes: Path) -> None:
    (volumes / "gateway-data/.copy-killed.partial").mkdir()
    saved(volumes)
    assert sorted(os.listdir(volumes / "gateway-data")) == ["aliases.json", "gateway.db"]


def test_an_empty_volume_is_not_in_the_archive(elsewhere: Path) -> None:
    (elsewhere / "runs/one").mkdir()
    manifest = manifest_of(saved(elsewhere))
    assert manifest["volumes"] == {"runs": {"files": 0, "bytes": 0}}


def test_only_known_files_are_put_in(volumes: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("stranger"), io.BytesIO())
    stream.seek(0)
    with pytest.raises(Refused, match="stranger"):
        saving.save(volumes, stream, io.BytesIO())


def test_looking_names_what_is_there(volumes: Path) -> None:
    command = [sys.executable, "-m", "services.volumes", "look", "--root", str(volumes)]
    (volumes / "adapters/.half.partial").mkdir()
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert found["volumes"]["adapters"]["entries"] == [".archive", ".versions.json", ADAPTER]
    assert found["volumes"]["runs"]["bytes"] == sum(
        path.stat().st_size for path in (volumes / "runs").rglob("*") if path.is_file()
    )
    assert found["unfinished"] is False
    assert found["free"] > 0


def test_time_is_told_in_utc(volumes: Path) -> None:
    made_at = manifest_of(saved(volumes))["made_at"]
    assert abs(time.time() - time.mktime(time.strptime(made_at, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60
