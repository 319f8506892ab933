"""Real processes for the contract, integration and e2e rings: vLLM on a CPU, the gateway, the UI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.fakes.serving import free_port

REPO = Path(__file__).parent.parent
ENGINE_BIN = REPO / ".venv-engine" / "bin" / "preceptor-engine"
ENGINE_KEY = "engine-key-for-tests"


@dataclass
class Process:
    """One child in a process group of its own, with its output in a file."""

    command: list[str]
    env: dict[str, str]
    log: Path
    child: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Starts it."""
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env},
                cwd=REPO,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, how: signal.Signals = signal.SIGTERM, patience_s: float = 20) -> None:
        """Ends the whole group: vLLM has children."""
        if self.child is None:
            return
        try:
            os.killpg(self.child.pid, how)
            self.child.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(10)
        self.child = None

    def wait_for(self, url: str, limit_s: float) -> None:
        """Waits until `url` answers 200; a process that died shows its last lines."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.child is not None and self.child.poll() is not None:
                break
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        tail = self.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self.command[0]} did not answer at {url}:\n{tail}")


@dataclass
class RealEngine:
    """vLLM as `preceptor-engine serve` starts it."""

    process: Process
    url: str

    def client(self) -> httpx.Client:
        """A client with the engine's key."""
        headers = {"authorization": f"Bearer {ENGINE_KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def start(self) -> None:
        """Starts it and waits until it is healthy."""
        self.process.start()
        self.process.wait_for(f"{self.url}/health", 300)


@contextmanager
def running_engine(folder: Path) -> Iterator[RealEngine]:
    """A real engine on a free port."""
    port = free_port()
    env = {"ENGINE_PORT": str(port), "ENGINE_API_KEY": ENGINE_KEY, "ENGINE_HOST": "127.0.0.1"}
    engine = RealEngine(Process([str(ENGINE_BIN), "serve"], env, folder / "engine.log"), f"http://127.0.0.1:{port}")
    try:
        engine.start()
        yield engine
    finally:
        engine.process.end()


def python_module(module: str, env: dict[str, str], log: Path) -> Process:
    """A process that runs one of our modules."""
    return Process([sys.executable, "-m", module], env, log)
