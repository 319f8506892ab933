"""`make backup`, everything gone, `make restore`: the same answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

from tests.docker.conftest import QUESTION, Trained
from tests.docker.figures import Figures
from tests.docker.stack import Stack, plain_environment, wait_until


def run(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *words],
        cwd=stack.folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_a_backup_restores_to_the_same_answer_and_the_same_keys(
    stack: Stack, trained: Trained, figures: Figures
) -> None:
    made = stack.compose("exec", "--no-TTY", "gateway", "preceptor-gateway", "keys", "create", "backed up")
    saved = run(stack, "backup", "FILE=data/a-backup.tar.gz")
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert oct((stack.folder / "data/a-backup.tar.gz").stat().st_mode & 0o777) == "0o600"
    refused = run(stack, "restore", "FILE=data/a-backup.tar.gz")
    assert refused.returncode != 0
    assert "not empty" in refused.stderr
    began = time.monotonic()
    stack.compose("--profile", "*", "down", "--volumes", "--timeout", "5")
    empty(stack)
    restored = run(stack, "restore", "FILE=data/a-backup.tar.gz")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "400")
    wait_until(lambda: stack.ask("library", QUESTION).status_code == 200, 120, "the promoted adapter")
    response = stack.ask("library", QUESTION)
    assert response.headers["x-preceptor-adapter"] == trained.adapter
    assert response.json()["choices"][0]["message"]["content"] == trained.answer
    figures.note(
        "Backup", "`down --volumes`, `make restore`, `up`, to the same answer", f"{time.monotonic() - began:.0f} s"
    )
    with stack.client() as client:
        client.headers["authorization"] = f"Bearer {made.stdout.strip()}"
        assert client.get("/v1/keys/self").json()["name"] == "backed up"


def empty(stack: Stack) -> None:
    """The adapters' volume is a folder here, which `down --volumes` leaves."""
    for path in (stack.folder / "adapters-volume").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
