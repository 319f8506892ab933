"""Makes `.venv-bench` from its pins and looks for the system's tools; quick when nothing changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

from bench.gateway import upstream
from bench.gateway.machine import BENCH_PYTHON, ROOT, BenchFailed, tool

_FOLDER = BENCH_PYTHON.parent.parent
_STAMP = _FOLDER / ".preceptor-stamp"
_PINS = ROOT / "requirements/bench.txt"
_UV = ROOT / ".venv/bin/uv"
_PROGRAMS = ("litellm", "vllm-router", "py-spy")
_SHOWN_LINES = 15


def prepare() -> None:
    """Brings `.venv-bench` up to date.

    Raises:
        BenchFailed: A tool is missing, or a package could not be installed.
    """
    for name in ("taskset", "setpriv", "wrk", "nginx"):
        tool(name)
    upstream.modules()
    wanted = hashlib.sha256(f"{sys.version}\n{_FOLDER}\n".encode() + _PINS.read_bytes()).hexdigest()
    if _STAMP.is_file() and _STAMP.read_text() == wanted and all(_has(name) for name in _PROGRAMS):
        return
    if not _UV.exists():
        raise BenchFailed(f"{_UV.relative_to(ROOT)} is not there. Run `make setup` first.")
    sys.stdout.write(f"{_FOLDER.name}: {_PINS.relative_to(ROOT)}\n")
    # Half-copied packages look installed: without a stamp there is nothing to build upon.
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _run("venv", "--quiet", "--python", sys.executable, str(_FOLDER))
    _run("pip", "install", "--quiet", "--python", str(BENCH_PYTHON), "--no-deps", "--requirement", str(_PINS))
    _STAMP.write_text(wanted)


def _has(program: str) -> bool:
    return BENCH_PYTHON.with_name(program).exists()


def _run(*arguments: str) -> None:
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    done = subprocess.run([_UV, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise BenchFailed(f"uv {arguments[0]} ended with {done.returncode}:\n{tail}\nRun `make bench-gateway` again.")
