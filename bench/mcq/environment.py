"""Makes .venv-bench-mcq, which holds lm-evaluation-harness: `python -m bench.mcq.environment`.

An environment of its own, since lm-eval brings a resolution of its own. Its API client needs no torch, so none is
installed. The stamp is written last: a killed attempt is started again, an unchanged environment costs nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-bench-mcq"
PYTHON = FOLDER / "bin/python"
LOCK = ROOT / "requirements/bench-mcq.txt"
_STAMP = FOLDER / ".preceptor-stamp"


def make_environment() -> None:
    """Brings the environment up to date with its lock file.

    Raises:
        subprocess.CalledProcessError: Something could not be installed; pip has said what.
    """
    wanted = hashlib.sha256(f"{sys.version}\n{FOLDER}\n".encode() + LOCK.read_bytes()).hexdigest()
    if _STAMP.is_file() and _STAMP.read_text() == wanted and PYTHON.exists():
        return
    sys.stdout.write(f"{FOLDER.name}: {LOCK.relative_to(ROOT)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
    uv = ROOT / ".venv/bin/uv"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--requirement", LOCK], check=True
    )
    _STAMP.write_text(wanted)


if __name__ == "__main__":
    make_environment()
