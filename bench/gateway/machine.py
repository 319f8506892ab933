"""What the bench stands on: the checkout, the cores, the tools, and the sentences for those that are missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OUR_PYTHON = ROOT / ".venv/bin/python"
BENCH_PYTHON = ROOT / ".venv-bench/bin/python"
_DEBIAN = "apt-get install --no-install-recommends wrk nginx-light libnginx-mod-http-lua"
_OURS = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "langchain-core")
_THEIRS = ("litellm", "vllm-router", "uvicorn", "uvloop", "httptools", "aiohttp", "granian", "py-spy")


class BenchFailed(Exception):
    """A sentence for the person who ran this."""


class Missing(BenchFailed):
    """A tool of the system is not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was not found. On Debian: `{_DEBIAN}`, then stop nginx's own service if it started.")


class Cores(NamedTuple):
    """Who runs where."""

    proxy: int
    """The contestant, alone."""
    load: int
    """The upstream and the load tool."""


def cores() -> Cores:
    """The first two cores that this process may use.

    Raises:
        BenchFailed: There is only one.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchFailed(f"The bench needs 2 cores and may use {len(allowed)}. Run it on a larger machine.")
    return Cores(allowed[0], allowed[1])


def tool(name: str) -> str:
    """Where a program is; Debian keeps nginx outside an ordinary user's PATH.

    Raises:
        Missing: It is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(name)
    return found


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def environment() -> dict[str, str]:
    """What was measured on and with, for the report."""
    git = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {
        "processor": f"{_cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": git + (" with changes" if changed else ""),
        "load tool": _first_line(tool("wrk"), "-v").partition(" Copyright")[0],
        "upstream": _first_line(tool("nginx"), "-v").removeprefix("nginx version: "),
        "our gateway": _versions(OUR_PYTHON, _OURS),
        "the others": _versions(BENCH_PYTHON, _THEIRS),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0].strip()


def _versions(python: Path, packages: tuple[str, ...]) -> str:
    site = next((python.parent.parent / "lib").glob("python3*/site-packages"))
    found = {
        (distribution.metadata["Name"] or "").lower().replace("_", "-"): distribution.version
        for distribution in importlib.metadata.distributions(path=[str(site)])
    }
    return ", ".join(f"{name} {found[name]}" for name in packages if name in found)
