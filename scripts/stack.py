"""The Compose stack as scripts/backup.py sees it: what runs, what its volumes hold, how its containers are started.

Nothing but the standard library: who has only Docker has no environment of ours.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from scripts.setup import step

ROOT = Path(__file__).resolve().parents[1]
IN_VOLUMES = ("docker", "compose", "run", "--rm", "-T", "--no-deps", "volumes")
PATIENCE_S = 3600
"""How long services may take to be well again; an engine with large base weights needs minutes."""
_LABEL = "com.docker.compose"


class BackupFailed(Exception):
    """A sentence for the person who ran this."""


class Container(NamedTuple):
    """One that runs."""

    id: str
    service: str
    is_one_off: bool
    """Of `docker compose run`."""


class Stack(NamedTuple):
    """What Compose and Docker say."""

    database: str
    """Where keys are: `files` (SQLite, in a volume), `postgres` (our service) or `elsewhere`."""
    running: tuple[Container, ...]

    def one(self, service: str) -> Container | None:
        """The first container of a service."""
        return next((each for each in self.running if each.service == service and not each.is_one_off), None)


def reason(stderr: bytes) -> str:
    """Finds the sentence in what Docker, or our script in the container, wrote."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("volumes: ") for line in lines if line.startswith("volumes: ")]
    return (ours or lines or ["it said nothing"])[-1]


def call(*command: str, stdin: bytes | IO[bytes] = b"", doing: str) -> bytes:
    """Runs a command and returns what it printed.

    Raises:
        BackupFailed: It failed.
    """
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            command, cwd=ROOT, capture_output=True, check=False, **given
        )
    except FileNotFoundError as error:
        raise BackupFailed(f"There is no {command[0]!r} on PATH. Install Docker with its Compose plugin.") from error
    if done.returncode:
        raise BackupFailed(f"{doing} failed: {reason(done.stderr)}")
    return done.stdout


def find_stack() -> Stack:
    """Asks Compose for the stack's settings and Docker for what runs.

    Raises:
        BackupFailed: There is no stack, or Docker does not answer.
    """
    if not (ROOT / ".env").is_file():
        raise BackupFailed("There is no .env, so the stack is not set up here. Run `make secrets` first.")
    call("docker", "version", "--format", "{{.Server.Version}}", doing="Asking Docker, which must be running,")
    config = json.loads(call("docker", "compose", "config", "--format", "json", doing="Reading the Compose files"))
    url = urlsplit(config["services"]["gateway"]["environment"]["GATEWAY_DATABASE_URL"])
    database = "files" if url.scheme == "sqlite" else "postgres" if url.hostname == "postgres" else "elsewhere"
    listed = call(
        *("docker", "ps", "--filter", f"label={_LABEL}.project={config['name']}", "--format"),
        f'{{{{.ID}}}} {{{{.Label "{_LABEL}.service"}}}} {{{{.Label "{_LABEL}.oneoff"}}}}',
        doing="Listing containers",
    )
    rows = [line.split() for line in listed.decode().splitlines()]
    return Stack(database, tuple(Container(row[0], row[1], row[2:] == ["True"]) for row in rows if len(row) > 1))


def look() -> dict[str, Any]:
    """Asks what the volumes hold; Compose first builds the gateway's image where it is missing."""
    with step("Looking at the volumes"):
        answer = call(*IN_VOLUMES, "look", doing="Looking at the volumes")
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def stop(containers: Sequence[Container]) -> None:
    """Stops containers, the last one first."""
    if containers:
        with step(f"Stopping {_names(containers)}"):
            call("docker", "stop", *(each.id for each in reversed(containers)), doing="Stopping the services")


def start(containers: Sequence[Container]) -> None:
    """Starts the very containers that were stopped, and waits until they are well.

    Not `compose up`: it would make other ones where the stack was started with more Compose files or another scale.

    Raises:
        BackupFailed: One does not come up.
    """
    if not containers:
        return
    with step(f"Starting {_names(containers)}"):
        call("docker", "start", *(each.id for each in containers), doing="Starting the services")
        deadline = time.monotonic() + PATIENCE_S
        waiting = list(containers)
        while waiting := [each for each in waiting if not _is_well(each)]:
            if time.monotonic() > deadline:
                raise BackupFailed(f"{_names(waiting)} did not come up within {PATIENCE_S} s. Read `docker logs`.")
            time.sleep(1)


def _is_well(container: Container) -> bool:
    state = call(
        *("docker", "inspect", "--format"),
        "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}} {{.RestartCount}}",
        container.id,
        doing=f"Looking at {container.service}",
    )
    *words, restarts = state.decode().split()
    if "exited" in words or "unhealthy" in words or int(restarts) > 2:
        raise BackupFailed(f"{container.service} does not come up again. Read `docker logs {container.id}`.")
    return words in (["running"], ["running", "healthy"])


def _names(containers: Sequence[Container]) -> str:
    return ", ".join(dict.fromkeys(each.service for each in containers))
