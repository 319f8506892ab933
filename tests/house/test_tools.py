"""The tools that `make lint` and `make typecheck` call, so that `make test` is the whole truth."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

COMMANDS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("lint-imports", "--no-cache"),
    ("mypy",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_tool_has_nothing_to_say(command: tuple[str, ...]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
