"""A `docker` that keeps a list of calls, and whose service `volumes` is the real script on folders of the test.

FAKE_DOCKER names its folder: `state.json` (what runs, how it goes wrong), `calls`, `volumes/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(os.environ["FAKE_DOCKER"])
PREFIX = ["run", "--rm", "-T", "--no-deps", "volumes"]
KEY = "com.docker.compose"


def write(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


def fail(text: str) -> int:
    sys.stderr.write(text + "\n")
    return 1


def in_volumes(arguments: list[str], broken: dict[str, str]) -> int:
    """Runs the real script as Compose would, beside lines of Compose's own."""
    sys.stderr.write(" Container preceptor-volumes-run-1  Creating\n")
    if arguments[0] in broken:
        if arguments[0] == "save":
            sys.stdout.buffer.write(os.urandom(2**20))
        return fail(broken[arguments[0]])
    command = [sys.executable, "-S", "-m", "services.volumes", *arguments, "--root", str(HERE / "volumes")]
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str]) -> int:
    state = json.loads((HERE / "state.json").read_text())
    with (HERE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    match arguments:
        case ["version", *_]:
            return fail("Cannot connect to the Docker daemon.") if state["down"] else write("29.0.0")
        case ["compose", "config", *_]:
            gateway = {"environment": {"GATEWAY_DATABASE_URL": state["database"]}}
            return write(json.dumps({"name": "preceptor", "services": {"gateway": gateway}}))
        case ["ps", "--filter", which, "--format", _]:
            assert which == f"label={KEY}.project=preceptor"
            running = {name: one for name, one in state["containers"].items() if one["runs"]}
            return write("\n".join(f"{name} {one['service']} {one['one_off']}" for name, one in running.items()))
        case ["compose", *rest] if rest[: len(PREFIX)] == PREFIX:
            return in_volumes(rest[len(PREFIX) :], state["broken"])
        case ["compose", "up", "-d", "--wait", "--no-deps", "postgres"]:
            state["containers"]["db1"] = {"service": "postgres", "one_off": False, "runs": True}
        case ["stop" | "start" as verb, *names]:
            for name in names:
                state["containers"][name]["runs"] = verb == "start"
        case ["inspect", "--format", _, name]:
            return write(state["health"].get(name, "running healthy 0"))
        case ["exec", "db1", "pg_dump", *_]:
            return fail(state["broken"]["pg_dump"]) if "pg_dump" in state["broken"] else write(state["rows"])
        case ["exec", "--interactive", "db1", "psql", *_]:
            (HERE / "loaded.sql").write_bytes(sys.stdin.buffer.read())
            return fail(state["broken"]["psql"]) if "psql" in state["broken"] else 0
        case _:
            return fail(f"unknown: {arguments}")
    (HERE / "state.json").write_text(json.dumps(state))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
