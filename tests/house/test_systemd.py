"""services/systemd/preceptor.service, which starts the Compose stack at boot."""

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path

import yaml

from tests.house.tree import ROOT
from tests.prerequisites import require

UNIT = ROOT / "services/systemd/preceptor.service"
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def unit() -> ConfigParser:
    # Strict: a key that stands there twice is an error.
    found = ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    found.optionxform = str  # type: ignore[assignment,method-assign]  # documented; keys keep their capitals
    found.read_string(UNIT.read_text())
    return found


def commands() -> list[list[str]]:
    service = unit()["Service"]
    return [shlex.split(service[name]) for name in ("ExecStart", "ExecStop")]


def seconds(text: str) -> int:
    return sum(int(count) * SECONDS[name] for count, name in re.findall(r"(\d+)([a-z]+)", text))


def services() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    return found


def test_the_unit_starts_after_docker_and_at_boot() -> None:
    found = unit()
    assert found.sections() == ["Unit", "Service", "Install"]
    assert "docker.service" in found["Unit"]["Requires"].split()
    assert {"docker.service", *found["Unit"]["Wants"].split()} <= set(found["Unit"]["After"].split())
    assert (found["Service"]["Type"], found["Service"]["RemainAfterExit"]) == ("oneshot", "yes")
    assert Path(found["Service"]["WorkingDirectory"]).is_absolute()
    assert found["Install"]["WantedBy"] == "multi-user.target"


def test_its_commands_name_compose_files_that_exist() -> None:
    assert [words[:3] for words in commands()] == [["docker", "compose", "up"], ["docker", "compose", "stop"]]
    named = set(re.findall(r"[\w.-]*compose[\w.-]*\.ya?ml", UNIT.read_text()))
    for words in commands():
        named |= {after for word, after in pairwise(words) if word in ("-f", "--file")}
    # Without -f, Compose takes the first or what COMPOSE_FILE in .env names.
    assert named == {"docker-compose.yaml", "compose.cpu.yaml"}
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_stopping_takes_no_container_and_no_volume_away() -> None:
    assert {"down", "rm", "-v", "--volumes"}.isdisjoint(commands()[1])


def test_it_waits_as_long_as_the_stack_may_take() -> None:
    health = services()["engine"]["healthcheck"]
    assert isinstance(health, dict)
    assert seconds(unit()["Service"]["TimeoutStartSec"]) > seconds(str(health["start_period"])) + 1800
    # Reverse to depends_on: pages, gateway, engine, database.
    chain = [str(services()[name].get("stop_grace_period", "10s")) for name in ("ui", "gateway", "engine", "postgres")]
    assert seconds(unit()["Service"]["TimeoutStopSec"]) > sum(map(seconds, chain))


def test_systemd_accepts_it(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    require(analyze, "systemd-analyze is not here; it comes with systemd.")
    # Where Docker is not, its unit and its program are missing: they are no part of what is looked at.
    (tmp_path / "docker.service").write_text(f"[Service]\nExecStart={shutil.which('true')}\n")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("=docker ", f"={shutil.which('true')} "))
    done = subprocess.run([str(analyze), "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    # Units of the machine may have faults of their own, which are told too.
    told = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, told) == (0, [])
