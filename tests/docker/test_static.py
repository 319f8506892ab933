"""Compose files as Compose itself reads them, for every set of profiles, and what Prometheus says of its own."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from tests.docker.stack import Stack, plain_environment
from tests.house.test_compose import PROFILES

FILES = {"gpu": "docker-compose.yaml", "cpu": "docker-compose.yaml:compose.cpu.yaml"}
SETS = [chosen for size in range(len(PROFILES) + 1) for chosen in itertools.combinations(sorted(PROFILES), size)]


@pytest.mark.parametrize("files", FILES)
def test_compose_accepts_every_set_of_profiles(checkout: Stack, files: str) -> None:
    for chosen in SETS:
        done = subprocess.run(
            ["docker", "compose", "config", "--quiet"],
            cwd=checkout.folder,
            env={**plain_environment(), "COMPOSE_FILE": FILES[files], "COMPOSE_PROFILES": ",".join(chosen)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), chosen


def test_compose_interpolates_what_env_names_and_nothing_else(checkout: Stack) -> None:
    """A variable that `.env.example` lacks would be a warning, and an empty string."""
    done = checkout.compose("--profile", "*", "config", "--variables")
    used = {line.split()[0] for line in done.stdout.splitlines()[1:] if line.strip()}
    example = (checkout.folder / ".env.example").read_text()
    # What a build is made of, and where torch comes from, may also be said on the command line.
    assert {name for name in used if f"\n{name}=" not in example} == {"PRECEPTOR_REVISION", "TORCH_INDEX"}
