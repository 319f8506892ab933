"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from tests.stack import REPO

BUSY = 0.5
"""Load a core, before the start, from which on other work disturbs the figures."""


def load_words(load: float) -> str:
    """The load before the start, and a warning where other work ran."""
    return f"{load:.2f}" + (" (other work ran on this machine: provisional)" if load > BUSY else "")


def load_per_core() -> float:
    """Mean number of processes that wanted a core during the last minute, for each core that there is."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def processor() -> str:
    """The processor's name and number of cores."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def pinned(lock: str, package: str) -> str:
    """The release that a lock file pins."""
    found = re.search(rf"^{package}==(\S+)$", (REPO / f"requirements/{lock}.txt").read_text(), re.MULTILINE)
    return found[1] if found else "?"


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
