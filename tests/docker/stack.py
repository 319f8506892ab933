"""The Compose stack on a real Docker engine, seen and troubled from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.stack import REPO

BUILT = ("engine", "gateway", "ui", "trainer")
"""Services whose images are ours."""
POLL_S = 0.1


def docker_answers() -> bool:
    """Tells whether a Docker engine with Compose can be asked."""
    if shutil.which("docker") is None:
        return False
    asked = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(one, capture_output=True, check=False).returncode == 0 for one in asked)


def clone(target: Path) -> None:
    """Copies what git knows of this checkout, changes that are not committed yet included."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True).stdout
    for name in names.decode().split("\0"):
        if name and (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target / name)


@dataclass(frozen=True)
class Stack:
    """One Compose project in a folder of its own.

    Attributes:
        folder: Its checkout, with `.env`.
        settings: What `.env` says.
    """

    folder: Path
    settings: dict[str, str]

    def compose(self, *words: str, check: bool = True, limit_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose` in the checkout, with nothing of this process's settings."""
        done = subprocess.run(
            ["docker", "compose", *words],
            cwd=self.folder,
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker compose {' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same, not waited for; its two outputs come as one."""
        return subprocess.Popen(
            ["docker", "compose", *words],
            cwd=self.folder,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def trainer(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the one-shot trainer."""
        return self.compose("run", "--rm", "--no-TTY", "trainer", *words, check=check)

    @property
    def gateway_url(self) -> str:
        """Where the gateway is published."""
        return f"http://{self.settings['PUBLISH_GATEWAY']}"

    @property
    def ui_url(self) -> str:
        """Where the pages are published."""
        return f"http://{self.settings['PUBLISH_UI']}"

    def client(self, key: str = "GATEWAY_API_KEY", **options: Any) -> httpx.Client:
        """A client of the gateway with a key out of `.env`."""
        headers = {"authorization": f"Bearer {self.settings[key]}"}
        return httpx.Client(base_url=self.gateway_url, headers=headers, timeout=120, **options)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What Docker says of each service's container, those that ended included."""
        ids = self.compose("--profile", "*", "ps", "--all", "--quiet").stdout.split()
        found = json.loads(docker("inspect", *ids)) if ids else []
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}

    def container(self, service: str) -> dict[str, Any]:
        """The same of one."""
        (one,) = json.loads(docker("inspect", self.compose("ps", "--all", "--quiet", service).stdout.strip()))
        return dict(one)

    def crash(self, service: str) -> None:
        """Kills a service's first process, which is no stop by hand: Docker's restart policy holds."""
        os.kill(int(self.container(service)["State"]["Pid"]), signal.SIGKILL)

    def is_healthy(self, service: str) -> bool:
        """Tells whether Docker calls it so now."""
        state = self.container(service)["State"]
        return bool(state["Running"]) and state.get("Health", {}).get("Status") == "healthy"

    def ask(self, served: str, question: str, client: httpx.Client | None = None) -> httpx.Response:
        """Asks one question, greedily, so that an answer can be compared with another one's."""
        body = {
            "model": served,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 24,
        }
        with self.client() as own:
            return (client or own).post("/v1/chat/completions", json=body)


def docker(*words: str) -> str:
    """Runs `docker` and returns what it says."""
    return subprocess.run(
        ["docker", *words], env=plain_environment(), capture_output=True, text=True, check=True, timeout=600
    ).stdout


def plain_environment() -> dict[str, str]:
    """This environment without what names a setting: Compose would take it before `.env`."""
    kept = ("PATH", "HOME", "LANG", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_BUILDKIT", "COMPOSE_BAKE", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def wait_until(holds: Callable[[], bool], limit_s: float, what: str) -> float:
    """Waits and returns the seconds it took; an answer that cannot be had yet counts as no."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        with suppress(httpx.TransportError, AssertionError):
            if holds():
                return time.monotonic() - began
        time.sleep(POLL_S)
    raise AssertionError(f"Not within {limit_s:.0f} s: {what}")


@dataclass
class Load:
    """Clients that ask without a pause, and what each of them saw.

    Attributes:
        seen: Moment (monotonic, in seconds), status or the exception's name, and `retry-after`, of each request.
    """

    ask: Callable[[httpx.Client], httpx.Response]
    client: Callable[[], httpx.Client]
    seen: list[tuple[float, str, str | None]] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def _go(self) -> None:
        while not self._end.is_set():
            try:
                # A client of its own each time: what is asked is whether somebody who comes now is served.
                with self.client() as one:
                    response = self.ask(one)
                self.seen.append((time.monotonic(), str(response.status_code), response.headers.get("retry-after")))
            except httpx.TransportError as error:
                self.seen.append((time.monotonic(), type(error).__name__, None))
            self._end.wait(POLL_S)

    @contextmanager
    def running(self, clients: int = 4) -> Iterator[Load]:
        """Asks as long as the block lasts."""
        threads = [threading.Thread(target=self._go) for _ in range(clients)]
        for one in threads:
            one.start()
        try:
            yield self
        finally:
            self._end.set()
            for one in threads:
                one.join(150)

    def outcomes(self) -> Counter[str]:
        """How often each outcome was seen."""
        return Counter(outcome for _, outcome, _ in self.seen)

    def outage_s(self) -> float:
        """Seconds from the last good answer before the first bad one to the next good one; 0 where none was bad."""
        seen = sorted(self.seen)
        bad = [moment for moment, outcome, _ in seen if outcome != "200"]
        if not bad:
            return 0.0
        good = [moment for moment, outcome, _ in seen if outcome == "200"]
        before = max((moment for moment in good if moment < bad[0]), default=seen[0][0])
        after = min((moment for moment in good if moment > bad[-1]), default=seen[-1][0])
        return after - before
