"""Whatever ends, comes back by itself, and clients are told meanwhile what is so."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.docker.conftest import QUESTION, Trained
from tests.docker.figures import Figures
from tests.docker.stack import Load, Stack, docker, wait_until
from tests.prerequisites import require

GATEWAY_BACK_S = 5.0
TOLD = {"200", "502", "503"}
"""What a client may see while something is down: an answer, or an error in our shape."""
NO_ANSWER = {"ConnectError", "ReadError", "RemoteProtocolError"}
"""What a client sees of a process that is not there."""


def load_on(stack: Stack) -> Load:
    return Load(lambda client: stack.ask("library", QUESTION, client), stack.client)


def note(figures: Figures, what: str, load: Load, asked: str = "") -> None:
    seen = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(load.outcomes().items()))
    figures.note(
        "Crashes under load", f"{what}; clients saw {seen}", f"{load.outage_s():.1f} s without an answer", asked
    )


def is_answered(stack: Stack, trained: Trained) -> bool:
    response = stack.ask("library", QUESTION)
    return response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == trained.answer


def test_the_gateway_comes_back(stack: Stack, trained: Trained, figures: Figures) -> None:
    load = load_on(stack)
    with load.running():
        time.sleep(2)
        stack.crash("gateway")
        time.sleep(0.5)
        wait_until(lambda: is_answered(stack, trained), 30, "an answer of the gateway")
        time.sleep(1)
    assert stack.container("gateway")["RestartCount"] >= 1
    assert set(load.outcomes()) <= TOLD | NO_ANSWER
    note(figures, "gateway killed", load, f"< {GATEWAY_BACK_S:.0f} s")


def test_the_page_comes_back(stack: Stack, figures: Figures) -> None:
    load = Load(lambda client: client.get("/"), lambda: httpx.Client(base_url=stack.ui_url, timeout=30))
    with load.running():
        time.sleep(1)
        stack.crash("ui")
        wait_until(lambda: stack.is_healthy("ui"), 60, "the page")
        time.sleep(1)
    assert set(load.outcomes()) <= {"200"} | NO_ANSWER
    assert load.outcomes()["200"] > 0
    note(figures, "page killed", load)


@pytest.mark.parametrize("database", ["postgres", "redis"])
def test_a_database_comes_back_and_keys_with_it(
    stack: Stack, trained: Trained, figures: Figures, database: str
) -> None:
    made = stack.compose("exec", "--no-TTY", "gateway", "preceptor-gateway", "keys", "create", f"before {database}")
    key = {"authorization": f"Bearer {made.stdout.strip()}"}

    def ask(client: httpx.Client) -> httpx.Response:
        client.headers.update(key)
        return stack.ask("library", QUESTION, client)

    load = Load(ask, stack.client)
    with stack.client() as client:
        # A running gateway knows a key of the command line within some seconds.
        wait_until(lambda: ask(client).status_code == 200, 30, "a new key")
    with load.running():
        time.sleep(2)
        stack.crash(database)
        wait_until(lambda: stack.is_healthy(database), 60, database)
        time.sleep(2)
    with stack.client() as client:
        wait_until(lambda: ask(client).status_code == 200, 30, "an answer for a key of the database")
    assert load.outcomes()["200"] > 0
    assert set(load.outcomes()) <= TOLD
    note(figures, f"{database} killed", load)


def children(pid: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    below = {pid}
    for _ in range(6):
        below |= {int(one) for one, parent, _ in rows if int(parent) in below}
    return {int(one): words for one, _, words in rows if int(one) in below - {pid}}


@pytest.mark.parametrize("which", ["core", "first process"])
def test_the_engine_comes_back_with_every_promoted_adapter(
    stack: Stack, trained: Trained, figures: Figures, which: str
) -> None:
    """vLLM's core is the process that has the weights; with the first one the whole container ends."""
    load = load_on(stack)
    with load.running():
        time.sleep(2)
        first = int(stack.container("engine")["State"]["Pid"])
        (core,) = [pid for pid, words in children(first).items() if "EngineCore" in words]
        began = time.monotonic()
        os.kill(core if which == "core" else first, signal.SIGKILL)
        wait_until(lambda: not stack.is_healthy("engine"), 60, "an engine that ended")
        wait_until(lambda: stack.is_healthy("engine"), 240, "an engine")
        healthy = time.monotonic()
        wait_until(lambda: is_answered(stack, trained), 60, "the promoted adapter")
        back = time.monotonic()
        time.sleep(1)
    assert set(load.outcomes()) <= TOLD
    assert all(retry for _, outcome, retry in load.seen if outcome == "503")
    note(figures, f"engine's {which} killed", load)
    figures.note(
        "Crashes under load",
        f"engine healthy {healthy - began:.0f} s after the kill; its promoted adapter answers",
        f"{max(0.0, back - healthy):.1f} s later",
        "< 5 s",
    )


def test_a_gateway_cut_off_the_engine_says_so_and_comes_back(stack: Stack, trained: Trained, figures: Figures) -> None:
    network = f"{stack.settings['COMPOSE_PROJECT_NAME']}_serving"
    gateway = stack.container("gateway")["Id"]
    load = load_on(stack)
    with load.running():
        time.sleep(2)
        docker("network", "disconnect", network, gateway)
        try:
            wait_until(lambda: stack.ask("library", QUESTION).status_code == 503, 60, "a 503")
            time.sleep(3)
        finally:
            docker("network", "connect", network, gateway)
        wait_until(lambda: is_answered(stack, trained), 60, "an answer")
    assert set(load.outcomes()) <= TOLD
    note(figures, "gateway cut off the engine's network, and connected again", load)


def test_a_full_adapters_volume_loses_nothing(stack: Stack, trained: Trained) -> None:
    volume = stack.folder / "adapters-volume"
    free = os.statvfs(volume)
    filler = volume / "filler"
    filler.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - 2**20))
    try:
        full = stack.trainer("library", "--data", "/data/mine.csv", "--seed", "8", "--no-promote", check=False)
        assert full.returncode == 1, full.stdout + full.stderr
        assert "Traceback" not in full.stderr
        assert "full" in full.stderr or "space" in full.stderr, full.stderr
        assert is_answered(stack, trained)
    finally:
        filler.unlink()
    (again,) = [line for line in full.stderr.splitlines() if "preceptor-trainer resume" in line]
    run = next(word for word in shlex.split(again.replace("`", " ")) if word.startswith("library-"))
    done = stack.trainer("resume", run.rstrip("."), "--no-promote", check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert not list(Path(volume).glob("*.partial"))


def test_dockers_daemon_restarts(stack: Stack, trained: Trained, figures: Figures) -> None:
    command = os.environ.get("PRECEPTOR_DOCKER_RESTART")
    require(command, "PRECEPTOR_DOCKER_RESTART, a command that restarts Docker's daemon, is not set.", everywhere=False)
    load = load_on(stack)
    with load.running():
        time.sleep(1)
        subprocess.run(["bash", "-c", str(command)], check=True, timeout=300, capture_output=True)
        wait_until(lambda: is_answered(stack, trained), 300, "the promoted adapter")
        time.sleep(1)
    assert set(load.outcomes()) <= TOLD | NO_ANSWER
    note(figures, "Docker's daemon restarted", load)
