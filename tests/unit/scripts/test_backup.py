"""`make backup` and `make restore` as somebody runs them, with a Docker of which only the service `volumes` is real."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.backup import USERS
from services.volumes.archive import VOLUMES
from services.volumes.reading import STAGING
from tests.house.test_files import make_targets
from tests.house.tree import ROOT
from tests.unit.scripts.volumes_fixtures import ADAPTER, contents, empty, fill

SERVICES = ("engine", "gateway", "ui")
POSTGRES = "postgresql+psycopg://preceptor:secret@postgres/preceptor"


class Machine:
    """A checkout with a stack beside it."""

    def __init__(self, path: Path) -> None:
        self.checkout = path / "checkout"
        self.docker = path / "docker"
        self.volumes = fill(self.docker / "volumes")
        for name in ("scripts/backup.py", "scripts/setup.py", "scripts/stack.py", "services/volumes"):
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
        (self.checkout / ".env").write_text("GATEWAY_API_KEY=secret\n")
        command = f'exec {sys.executable} -S {ROOT / "tests/unit/scripts/fake_docker.py"} "$@"'
        (path / "bin").mkdir()
        (path / "bin/docker").write_text(f"#!/bin/sh\n{command}\n")
        (path / "bin/docker").chmod(0o755)
        self.path = f"{path / 'bin'}:{os.environ['PATH']}"
        self.state: dict[str, Any] = {
            "down": False,
            "database": "sqlite:////var/lib/preceptor/gateway/gateway.db",
            "containers": {f"{name}1": {"service": name, "one_off": False, "runs": True} for name in SERVICES},
            "broken": {},
            "health": {},
            "rows": "CREATE TABLE keys ();",
        }

    def run(self, *arguments: str, before: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
        """Runs what the Makefile runs; the state is Docker's at its beginning."""
        (self.docker / "state.json").write_text(json.dumps(self.state))
        (self.docker / "calls").write_text("")
        command = f'{before} exec "$0" -S -m scripts.backup "$@"'
        return subprocess.run(
            ["/bin/sh", "-c", command, sys.executable, *arguments],
            cwd=self.checkout,
            env={"PATH": path or self.path, "FAKE_DOCKER": str(self.docker)},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, *verbs: str) -> list[list[str]]:
        """Calls of docker that began so."""
        found = [json.loads(line) for line in (self.docker / "calls").read_text().splitlines()]
        return [call for call in found if call[: len(verbs)] == [*verbs]]

    def in_volumes(self) -> list[str]:
        """What was asked of service `volumes`."""
        return [call[6] for call in self.calls("compose", "run")]

    def backup(self, *arguments: str) -> Path:
        """Makes a backup, and returns it."""
        done = self.run("backup", *arguments)
        assert done.returncode == 0, done.stderr
        (archive,) = (self.checkout / "data/backups").iterdir()
        return archive

    def refused(self, *arguments: str, **more: str) -> str:
        """Runs what must end with a sentence, and returns that."""
        done = self.run(*arguments, **more)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        (sentence,) = done.stderr.splitlines()
        return sentence


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """A backup of another machine."""
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    shutil.rmtree(other.volumes)
    fill(other.volumes, "two")
    return str(other.backup())


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return set(tar.getnames())


def test_make_calls_what_is_tested_here() -> None:
    targets = make_targets()
    assert targets["backup"] == ['\t@$(PYTHON) -m scripts.backup backup --file "$(FILE)" --env "$(ENV)"']
    assert targets["restore"] == ['\t@$(PYTHON) -m scripts.backup restore --file "$(FILE)" --force "$(FORCE)"']


def test_a_backup_is_one_file_that_only_its_owner_reads(machine: Machine) -> None:
    done = machine.run("backup")
    assert done.returncode == 0, done.stderr
    (archive,) = (machine.checkout / "data/backups").iterdir()
    assert re.fullmatch(r"preceptor-\d{8}T\d{6}Z\.tar\.gz", archive.name)
    assert archive.stat().st_mode & 0o777 == 0o600
    assert {f"volumes/adapters/{ADAPTER}/preceptor.json", "volumes/gateway-data/gateway.db"} <= names_in(archive)
    last = done.stdout.splitlines()[-2:]
    assert last[0].startswith(f"data/backups/{archive.name} (")
    assert "adapters (5 files" in last[0]
    assert last[1].startswith(".env with its secrets is not inside")
    assert ".env" not in names_in(archive)


def test_a_backup_stops_nothing(machine: Machine) -> None:
    before = contents(machine.volumes)
    machine.backup()
    assert machine.in_volumes() == ["look", "save"]
    assert machine.calls("stop") == []
    assert contents(machine.volumes) == before


def test_secrets_are_saved_where_asked_for(machine: Machine) -> None:
    done = machine.run("backup", "--env", "1", "--file", "mine.tar.gz")
    assert ".env" in names_in(machine.checkout / "mine.tar.gz")
    assert "It holds .env, and with it every secret" in done.stdout


def test_an_env_of_another_meaning_is_no_wish_for_secrets(machine: Machine) -> None:
    assert ".env" not in names_in(machine.backup("--env", "production"))


def test_a_file_is_not_overwritten(machine: Machine) -> None:
    (machine.checkout / "mine.tar.gz").write_text("mine")
    assert "mine.tar.gz exists" in machine.refused("backup", "--file", "mine.tar.gz")
    assert (machine.checkout / "mine.tar.gz").read_text() == "mine"


def test_a_round_trip_to_a_new_machine(machine: Machine, tmp_path: Path) -> None:
    archive = machine.backup()
    (tmp_path / "new").mkdir()
    new = Machine(tmp_path / "new")
    shutil.rmtree(new.volumes)
    empty(new.volumes)
    new.state["containers"] = {}
    done = new.run("restore", "--file", str(archive))
    assert done.returncode == 0, done.stderr
    assert contents(new.volumes) == contents(machine.volumes)
    assert new.calls("stop") + new.calls("start") == []
    assert "docker compose up -d --wait" in done.stdout.splitlines()[-1]


def test_a_new_machine_takes_its_secrets_from_the_archive(machine: Machine, tmp_path: Path) -> None:
    archive = machine.backup("--env", "1")
    (tmp_path / "new").mkdir()
    new = Machine(tmp_path / "new")
    (new.checkout / ".env").unlink()
    shutil.rmtree(new.volumes)
    empty(new.volumes)
    assert new.run("restore", "--file", str(archive)).returncode == 0
    assert (new.checkout / ".env").read_text() == "GATEWAY_API_KEY=secret\n"
    assert (new.checkout / ".env").stat().st_mode & 0o777 == 0o600


def test_secrets_that_are_there_stay(machine: Machine) -> None:
    archive = machine.backup("--env", "1")
    (machine.checkout / ".env").write_text("GATEWAY_API_KEY=newer\n")
    done = machine.run("restore", "--file", str(archive), "--force", "1")
    assert done.returncode == 0, done.stderr
    assert (machine.checkout / ".env").read_text() == "GATEWAY_API_KEY=newer\n"
    assert "The .env that is here stays" in done.stdout


def test_volumes_in_use_are_named_and_nothing_is_stopped(machine: Machine, archive: str) -> None:
    before = contents(machine.volumes)
    sentence = machine.refused("restore", "--file", archive)
    assert f"adapters (.archive, .versions.json, {ADAPTER})" in sentence
    assert "FORCE=1" in sentence
    assert machine.calls("stop") == []
    assert machine.in_volumes() == ["look"]
    assert contents(machine.volumes) == before


def test_force_replaces_them_and_what_ran_runs_again(machine: Machine, archive: str, tmp_path: Path) -> None:
    machine.state["containers"]["open-webui1"] = {"service": "open-webui", "one_off": False, "runs": True}
    machine.state["containers"]["engine2"] = {"service": "engine", "one_off": False, "runs": False}
    machine.state["containers"]["grafana1"] = {"service": "grafana", "one_off": False, "runs": True}
    done = machine.run("restore", "--file", archive, "--force", "1")
    assert done.returncode == 0, done.stderr
    assert contents(machine.volumes) == contents(tmp_path / "other/docker/volumes")
    assert machine.calls("stop") == [["stop", "open-webui1", "ui1", "gateway1", "engine1"]]
    assert machine.calls("start") == [["start", "engine1", "gateway1", "ui1", "open-webui1"]]
    order = [call[0] for call in machine.calls() if call[0] in ("stop", "start") or "restore" in call]
    assert order == ["stop", "compose", "start"]


def test_a_service_that_does_not_come_up_is_named(machine: Machine, archive: str) -> None:
    machine.state["health"] = {"engine1": "running unhealthy 0"}
    sentence = machine.refused("restore", "--file", archive, "--force", "1")
    assert sentence == "engine does not come up again. Read `docker logs engine1`."


def test_a_training_is_not_disturbed(machine: Machine, archive: str) -> None:
    machine.state["containers"]["run1"] = {"service": "trainer", "one_off": True, "runs": True}
    assert "'trainer' is at work" in machine.refused("restore", "--file", archive, "--force", "1")
    assert machine.calls("stop") == []


def test_postgres_is_saved_and_restored(machine: Machine) -> None:
    machine.state["database"] = POSTGRES
    machine.state["containers"]["db1"] = {"service": "postgres", "one_off": False, "runs": True}
    archive = machine.backup()
    assert "postgres.sql" in names_in(archive)
    # On a machine where it does not run yet.
    del machine.state["containers"]["db1"]
    done = machine.run("restore", "--file", str(archive), "--force", "1")
    assert done.returncode == 0, done.stderr
    clear, rows = (machine.docker / "loaded.sql").read_text().splitlines()
    assert clear.startswith("DROP SCHEMA public CASCADE;")
    assert rows == "CREATE TABLE keys ();"
    ((*_, load),) = [machine.calls("exec")]
    assert {"--single-transaction", "ON_ERROR_STOP=1"} <= set(load)


def test_keys_are_not_forgotten_where_postgres_does_not_run(machine: Machine) -> None:
    machine.state["database"] = POSTGRES
    assert "docker compose up -d --wait postgres" in machine.refused("backup")
    assert list((machine.checkout / "data/backups").iterdir()) == []


@pytest.mark.parametrize(
    ("saved", "here"), [("sqlite:////x.db", POSTGRES), (POSTGRES, "sqlite:////x.db")], ids=["to postgres", "to sqlite"]
)
def test_keys_do_not_go_to_another_kind_of_database(machine: Machine, saved: str, here: str) -> None:
    machine.state["containers"]["db1"] = {"service": "postgres", "one_off": False, "runs": True}
    machine.state["database"] = saved
    archive = machine.backup()
    machine.state["database"] = here
    assert "STACK_DATABASE_URL" in machine.refused("restore", "--file", str(archive), "--force", "1")
    assert machine.calls("stop") == []


def test_a_database_elsewhere_is_said_to_be_missing(machine: Machine) -> None:
    machine.state["database"] = "postgresql+psycopg://me:secret@db.example/keys"
    done = machine.run("backup")
    assert "save it with pg_dump" in done.stdout
    assert "secret@" not in done.stdout


def test_rows_that_cannot_be_restored_leave_the_services_running(machine: Machine) -> None:
    machine.state["database"] = POSTGRES
    machine.state["containers"]["db1"] = {"service": "postgres", "one_off": False, "runs": True}
    archive = machine.backup()
    machine.state["broken"] = {"psql": "psql: FATAL"}
    done = machine.run("restore", "--file", str(archive), "--force", "1")
    assert done.returncode == 1
    assert done.stderr == "Restoring PostgreSQL failed: psql: FATAL\n"
    assert "The volumes hold what the backup holds." in done.stdout
    assert machine.calls("start") == [["start", "engine1", "gateway1", "ui1"]]


def test_a_container_that_fails_in_the_middle_leaves_no_file(machine: Machine) -> None:
    machine.state["broken"] = {"save": "volumes: Database 'x' was locked for 60 s."}
    assert machine.refused("backup") == "Saving the volumes failed: Database 'x' was locked for 60 s."
    assert list((machine.checkout / "data/backups").iterdir()) == []


def test_a_restore_that_fails_leaves_the_old_and_starts_what_ran(machine: Machine, archive: str) -> None:
    before = contents(machine.volumes)
    machine.state["broken"] = {"restore": "volumes: No room is left on the disk of Docker's volumes."}
    done = machine.run("restore", "--file", archive, "--force", "1")
    assert done.returncode == 1
    assert "No room is left" in done.stderr
    assert "The volumes hold what they held before." in done.stdout
    assert contents(machine.volumes) == before
    assert machine.calls("start") == [["start", "engine1", "gateway1", "ui1"]]


def half_restored(volumes: Path) -> None:
    """As a kill in the middle of the swap leaves them."""
    staging = volumes / "runs" / STAGING
    (staging / "new").mkdir(parents=True)
    (staging / "names.json").write_text("[]")
    (staging / "committed").touch()


def test_half_of_a_restore_is_not_backed_up(machine: Machine) -> None:
    half_restored(machine.volumes)
    assert "A restore broke off" in machine.refused("backup")


def test_a_restore_that_broke_off_is_repaired_by_the_same_command(
    machine: Machine, archive: str, tmp_path: Path
) -> None:
    half_restored(machine.volumes)
    done = machine.run("restore", "--file", archive)
    assert done.returncode == 0, done.stderr
    assert contents(machine.volumes) == contents(tmp_path / "other/docker/volumes")


def test_a_full_disk_leaves_no_half_file_and_tells_what_is_needed(machine: Machine) -> None:
    (machine.volumes / "runs/big").write_bytes(os.urandom(2**20))
    # A file may not have more than 512 blocks of 512 bytes.
    sentence = machine.refused("backup", before="ulimit -f 512;")
    assert re.search(r"No room is left in data/backups: up to 1\.\d MiB are needed", sentence)
    assert "FILE=" in sentence
    assert list((machine.checkout / "data/backups").iterdir()) == []


def test_too_little_room_for_a_restore_is_told_before_anything_stops(machine: Machine, tmp_path: Path) -> None:
    archive = machine.backup()
    huge = tmp_path / "huge.tar.gz"
    with tarfile.open(archive) as old, tarfile.open(huge, "w:gz") as new:
        for member in old:
            content = old.extractfile(member)
            data = content.read() if content else b""
            if member.name == "manifest.json":
                manifest = json.loads(data)
                manifest["volumes"]["runs"]["bytes"] = 2**60
                data = json.dumps(manifest).encode()
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    assert "needs 1073741824.00 GiB" in machine.refused("restore", "--file", str(huge), "--force", "1")
    assert machine.calls("stop") == []


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_without_docker_a_sentence_says_so(machine: Machine, archive: str, command: str) -> None:
    file = ["--file", archive] if command == "restore" else []
    assert "Install Docker" in machine.refused(command, *file, path="/nowhere")
    machine.state["down"] = True
    assert "Cannot connect to the Docker daemon" in machine.refused(command, *file)
    (machine.checkout / ".env").unlink()
    assert "make secrets" in machine.refused(command, *file)


def test_empty_volumes_are_no_backup(machine: Machine) -> None:
    shutil.rmtree(machine.volumes)
    empty(machine.volumes)
    assert "nothing to save" in machine.refused("backup")


def test_a_restore_wants_a_file_and_knows_the_newest(machine: Machine) -> None:
    assert machine.refused("restore") == "Say which backup: make restore FILE=<file>."
    archive = machine.backup()
    newest = f"The newest one here is data/backups/{archive.name}."
    assert machine.refused("restore", "--file", "nope.tar.gz") == f"There is no file 'nope.tar.gz'. {newest}"
    assert machine.refused("restore").endswith(newest)


def test_a_bad_archive_is_refused_before_docker_is_asked(machine: Machine, archive: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(Path(archive).read_bytes()[:-100])
    sentence = machine.refused("restore", "--file", str(bad), "--force", "1")
    assert sentence.startswith(f"Reading {bad} failed: It is no whole backup of Preceptor")
    assert machine.calls() == []


def test_two_do_not_work_at_once(machine: Machine) -> None:
    done = machine.run("backup", before='exec 9<.; flock 9; "$0" -S -m scripts.backup "$@"; exit $?;')
    assert done.stderr == "Another backup or restore is at work. Wait for its end.\n"


def in_compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    return services


def test_the_service_has_every_volume_where_the_script_looks_for_it() -> None:
    service = in_compose()["volumes"]
    assert {f"{name}:/volumes/{name}" for name in VOLUMES} <= set(service["volumes"])
    assert service["image"] == in_compose()["gateway"]["image"]
    # What is printed is the archive: a log would hold gigabytes of it.
    assert service["logging"] == {"driver": "none"}
    assert service["network_mode"] == "none"


def test_whoever_uses_a_volume_is_stopped_or_waited_for() -> None:
    users = {
        name
        for name, service in in_compose().items()
        if {str(mount).split(":")[0] for mount in service.get("volumes", [])} & set(VOLUMES)
    }
    # `owner` has ended before any of them starts.
    one_offs = {"owner", "trainer", "volumes"}
    assert users - one_offs == set(USERS) - {"ui"}


def test_what_cannot_be_made_again_is_saved() -> None:
    volumes = set(yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["volumes"])
    made_again = {"hf-cache", "alloy-data", "grafana-data", "loki-data", "prometheus-data"}
    # PostgreSQL's own files are saved as rows.
    assert volumes - made_again - {"postgres-data"} == set(VOLUMES)
