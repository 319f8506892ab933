"""Virtual environments of their own for what ours is measured against: `python -m bench.environments`.

Each rival brings a resolution of its own. The stamp is written last: a killed attempt is started again, an unchanged
environment costs nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from scripts.setup import TORCH, torch_arguments

ROOT = Path(__file__).resolve().parents[1]


class BenchEnvironment(NamedTuple):
    """One environment and what is in it."""

    folder: Path
    lock: Path
    has_torch: bool = False
    """Whether the torch of requirements/torch.txt is installed besides."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin/python"

    def make(self) -> None:
        """Brings the environment up to date with its lock file.

        Raises:
            subprocess.CalledProcessError: Something could not be installed; pip has said what.
        """
        stamp = self.folder / ".preceptor-stamp"
        pins = self.lock.read_bytes() + ((ROOT / TORCH).read_bytes() if self.has_torch else b"")
        wanted = hashlib.sha256(f"{sys.version}\n{self.folder}\n".encode() + pins).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted and self.python.exists():
            return
        sys.stdout.write(f"{self.folder.name}: {self.lock.relative_to(ROOT)}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder], check=True)
        if self.has_torch:
            # Only pip finds the CPU build in a folder of wheels (scripts/setup.py).
            pip: list[str | Path] = [self.python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", *torch_arguments(), "--requirement", ROOT / TORCH], check=True)
        uv: list[str | Path] = [ROOT / ".venv/bin/uv", "pip", "install", "--quiet", "--python", self.python]
        subprocess.run([*uv, "--no-deps", "--requirement", self.lock], check=True)
        stamp.write_text(wanted)


MCQ = BenchEnvironment(ROOT / ".venv-bench-mcq", ROOT / "requirements/bench-mcq.txt")
"""lm-evaluation-harness; its API client needs no torch."""
TRAINER = BenchEnvironment(ROOT / ".venv-bench-trainer", ROOT / "requirements/bench-trainer.txt", has_torch=True)
"""LLaMA-Factory."""


if __name__ == "__main__":
    for environment in (MCQ, TRAINER):
        environment.make()
