"""One Compose project for the whole ring: a clean copy of the checkout, its images, its stack, one trained adapter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docker import figures as pages
from tests.docker.figures import Figures
from tests.docker.stack import BUILT, Stack, clone, docker, docker_answers, plain_environment, wait_until
from tests.fakes.serving import free_port
from tests.prerequisites import require

PROJECT = "preceptor-test"
ADAPTERS_MIB = 96
WARM_START_S = 15
STAND_IN = "stand-in"
QUESTION = "At what hour can I come in?"


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Figures]:
    """Where tests note what they measured; PRECEPTOR_REPORT=1 makes the page of it."""
    found = Figures()
    yield found
    pages.keep(found, tmp_path_factory.getbasetemp())
    if os.environ.get("PRECEPTOR_REPORT"):
        pages.PAGE.parent.mkdir(exist_ok=True)
        pages.PAGE.write_text(found.page(pages.machine()))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clean copy with an `.env` as a person would make it, on ports of its own."""
    require(docker_answers(), "No Docker engine with Compose answers.", everywhere=False)
    require(
        os.geteuid() == 0,
        "Killing containers' processes takes root.",
        everywhere=False,
    )
    folder = tmp_path_factory.mktemp("compose")
    clone(folder)
    shutil.copytree(folder / "docs/examples/library", folder / "domains/library")
    (folder / "data").mkdir()
    shutil.copy2(folder / "docs/examples/library/faq.csv", folder / "data/mine.csv")
    subprocess.run(
        [sys.executable, "scripts/setup.py", "--only-secrets"], cwd=folder, env=plain_environment(), check=True
    )
    # The adapters' volume is a small file system, so that a test can fill it; it outlives Docker's daemon.
    adapters = folder / "adapters-volume"
    adapters.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ADAPTERS_MIB}m,uid=10001,gid=10001", "tmpfs", adapters], check=True
    )
    (folder / "compose.test.yaml").write_text(
        f"volumes:\n  adapters:\n    driver_opts: {{type: none, o: bind, device: {adapters}}}\n"
    )
    wanted = {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_FILE": "docker-compose.yaml:compose.cpu.yaml:compose.test.yaml",
        "COMPOSE_PROFILES": "scale",
        "PRECEPTOR_TAG": "test",
        "PUBLISH_GATEWAY": f"127.0.0.1:{free_port()}",
        "PUBLISH_UI": f"127.0.0.1:{free_port()}",
        "ENGINE_MEMORY": "6g",
        "TRAINER_MEMORY": "8g",
        "TRAINER_GUARD": "off",
        # A stand-in must not be taken for the real one later.
        "PROMETHEUS_TAG": STAND_IN,
        "STACK_LIMITS_URL": "redis://redis:6379/0",
    }
    settings = edit_env(folder / ".env", wanted)
    database = f"postgresql+psycopg://preceptor:{settings['POSTGRES_PASSWORD']}@postgres/preceptor"
    stack = Stack(folder, edit_env(folder / ".env", {"STACK_DATABASE_URL": database}))
    try:
        yield stack
    finally:
        (folder / "stack.log").write_text(stack.compose("--profile", "*", "logs", "--no-color", check=False).stdout)
        stack.compose("--profile", "*", "down", "--volumes", "--timeout", "5", check=False)
        subprocess.run(["umount", adapters], check=True)


def edit_env(path: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Sets lines of an `.env` as a person would, and returns all of them."""
    text = path.read_text()
    for name, value in wanted.items():
        line = f"{name}={value}"
        text, found = re.subn(rf"^{name}=.*$", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
        text += "" if found else f"{line}\n"
    path.write_text(text)
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


@pytest.fixture(scope="session")
def images(checkout: Stack, figures: Figures) -> dict[str, str]:
    """Names of our images by service, built from the clean copy."""
    began = time.monotonic()
    checkout.compose("--profile", "train", "build", *BUILT, limit_s=1800)
    figures.note("Images", "all four, as this machine's caches had it", f"{time.monotonic() - began:.0f} s")
    return {
        **{one: f"preceptor-{one}:test" for one in BUILT},
        "engine": "preceptor-engine-cpu:test",
        "trainer": "preceptor-trainer-cpu:test",
    }


@pytest.fixture(scope="session")
def started(checkout: Stack, images: dict[str, str], figures: Figures) -> Stack:
    """The stack, brought up as the README says."""
    began = time.monotonic()
    checkout.compose("up", "--detach", "--wait", "--wait-timeout", "400")
    figures.note("Start", "first `up -d --wait`, base model made from its wheel", f"{time.monotonic() - began:.0f} s")
    return checkout


@pytest.fixture
def stack(started: Stack) -> Stack:
    """The stack, whole: what a test before did is over."""
    with started.client() as client:
        wait_until(lambda: client.get("/health").json()["status"] == "ok", 120, "a whole stack")
    return started


class Trained(NamedTuple):
    """What the one-shot trainer left.

    Attributes:
        adapter: The promoted version.
        answer: What it says to `QUESTION`.
        said: What the trainer printed.
        first_answer: When the new version first answered through the published port, in seconds since 1970.
    """

    adapter: str
    answer: str
    said: str
    first_answer: float


@pytest.fixture(scope="session")
def trained(started: Stack, figures: Figures) -> Trained:
    """`docker compose run --rm trainer` on a file of one's own, as the documentation says it."""
    answers: list[float] = []
    end = threading.Event()
    watching = threading.Thread(target=watch, args=(started, answers, end))
    watching.start()
    began = time.monotonic()
    try:
        done = started.trainer("library", "--data", "/data/mine.csv")
    finally:
        end.set()
        watching.join(150)
    figures.note("Trainer", "36 rows, from the command to the promotion", f"{time.monotonic() - began:.0f} s")
    response = started.ask("library", QUESTION).raise_for_status()
    answer = response.json()["choices"][0]["message"]["content"]
    return Trained(response.headers["x-preceptor-adapter"], answer, done.stdout, answers[0])


def watch(stack: Stack, answers: list[float], end: threading.Event) -> None:
    """Asks a new version of the library as soon as the gateway lists one."""
    with stack.client() as client:
        while not answers and not end.wait(0.3):
            listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
            for served in (one for one in listed if one.startswith("library:library-v")):
                if stack.ask(served, QUESTION, client).status_code == 200:
                    answers.append(time.time())


def image_bytes(name: str) -> int:
    """What an image takes on disk."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", name))
