"""Processes that never outlive the bench: each in a group of its own, pinned, its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from bench.gateway.machine import BenchFailed, tool

_SHOWN_LOG_LINES = 15
_PATIENCE_S = 15.0
_QUIET_IDLE = 90
"""Percent."""


@dataclass(frozen=True)
class Command:
    """How to start something."""

    arguments: Sequence[str]
    environment: dict[str, str]
    folder: Path
    """Working directory."""
    log: Path
    core: int

    @property
    def pinned(self) -> list[str]:
        """The arguments behind `taskset`; the kernel ends the process should the bench be killed outright."""
        death = (tool("setpriv"), "--pdeathsig", "KILL")
        return [*death, tool("taskset"), "--cpu-list", str(self.core), *self.arguments]


class Running:
    """A started command with all its children."""

    def __init__(self, command: Command) -> None:
        self._command = command
        with command.log.open("ab") as output:
            self._child = subprocess.Popen(
                command.pinned,
                env={**_inherited(), **command.environment},
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def wait_for(self, url: str, limit_s: float) -> None:
        """Waits until a URL answers 200.

        Raises:
            BenchFailed: It does not, or the process ended; carries the end of its log.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self._child.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        self._give_up(f"did not answer at {url}")

    @property
    def ended_with(self) -> int | None:
        """Its exit status where it ended by itself, less than 0 by a signal; None while it runs."""
        return self._child.poll()

    def check(self) -> None:
        """Raises BenchFailed where the process ended by itself."""
        if self._child.poll() is not None:
            self._give_up(f"ended with {self._child.returncode}")

    def _give_up(self, what: str) -> NoReturn:
        tail = self._command.log.read_text(errors="replace").splitlines()[-_SHOWN_LOG_LINES:]
        shown = "\n".join(f"    {line[:200]}" for line in tail)
        raise BenchFailed(f"{Path(self._command.arguments[0]).name} {what}. The end of its log:\n{shown}")

    def rss_mib(self) -> float:
        """Resident memory of the process and its children, in MiB."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def cpu_s(self) -> float:
        """Processor time of the process and its children, in seconds."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        return []

    def end(self) -> None:
        """Ends the group, first politely."""
        children = self._tree()[1:]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        # A child that made a session of its own is not in the group.
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@contextlib.contextmanager
def running(command: Command, url: str, limit_s: float = 90) -> Iterator[Running]:
    """Starts a command, waits until its URL answers, and ends it whatever happens."""
    process = Running(command)
    try:
        process.wait_for(url, limit_s)
        yield process
    finally:
        process.end()


def _inherited() -> dict[str, str]:
    """What a process gets of the bench's own environment: nobody's settings, keys or proxies."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ}


def status_of(url: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Posts once; returns status, headers in lower case, and body."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def busy() -> str:
    """How much of all cores others use now, looked at for a second while the bench itself sleeps."""
    idle = psutil.cpu_times_percent(interval=1).idle
    return f"{100 - idle:.0f} %" + ("" if idle >= _QUIET_IDLE else ": NOT QUIET, do not trust these figures")
