"""`make demo` as the README writes it, on folders and ports of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.serving import free_port
from tests.prerequisites import require
from tests.stack import ENGINE_BIN, REPO

STAYS = "until Ctrl-C"


@dataclass
class Demo:
    """One `make demo`."""

    child: subprocess.Popen[bytes]
    log: Path
    env: dict[str, str]
    root: Path

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.env['UI_PORT']}"

    @property
    def gateway(self) -> str:
        return self.env["TRAINER_GATEWAY_URL"]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, limit_s: float) -> None:
        """Waits until the demo printed `words`."""
        deadline = time.monotonic() + limit_s
        while words not in self.text():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{words!r} was not printed:\n{self.text()[-4000:]}")
            time.sleep(1)

    def members(self) -> list[int]:
        """Every living process of the demo's session, honcho's own process groups included."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self.env["DEMO_MARK"].encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """Ends whatever is left, so that one failed test does not starve the next."""
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.child.wait(30)


def start_demo(root: Path, **more: str) -> Demo:
    """Runs `make demo` with `more` as environment or make variables."""
    require(ENGINE_BIN.exists(), "The engine's environment is not there. Run `make setup`.")
    ports = {name: str(free_port()) for name in ("ENGINE_PORT", "GATEWAY_PORT", "UI_PORT")}
    gateway = f"http://127.0.0.1:{ports['GATEWAY_PORT']}"
    env = {
        **ports,
        "ENGINE_URLS": f"http://127.0.0.1:{ports['ENGINE_PORT']}",
        "TRAINER_GATEWAY_URL": gateway,
        "UI_GATEWAY_URL": gateway,
        "ADAPTERS_DIR": str(root / "adapters"),
        "RUNS_DIR": str(root / "runs"),
        "GATEWAY_DATA_DIR": str(root / "gateway"),
        "GATEWAY_API_KEY": "use-key-for-the-demo",
        "GATEWAY_ADMIN_KEY": "admin-key-for-the-demo",
        "ENGINE_API_KEY": "engine-key-for-the-demo",
        "DEMO_MARK": f"demo-{root.name}-{ports['UI_PORT']}",
        **more,
    }
    log = root / "demo.log"
    with log.open("wb") as output:
        # CI's own make must not hand its flags down.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        child = subprocess.Popen(
            ["make", "demo"],
            cwd=REPO,
            env={**inherited, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Demo(child, log, env, root)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The whole story, with the page kept up."""
    one = start_demo(tmp_path_factory.mktemp("demo"))
    try:
        one.wait_for(STAYS, 2400)
        yield one
    finally:
        one.kill()
