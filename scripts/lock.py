"""Pins requirements/*.in into requirements/*.txt: `make lock`. Pins that still fit stay; `--upgrade` takes the newest.

dev.txt is resolved first and holds the members of .venv together; each member's file is then a part of it. The engine
has a resolution of its own, since vLLM pins its own transformers, and so have what ours is measured against and Open
WebUI. No file names an index: whoever installs brings one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".venv/bin/uv"
COMPILE = (
    *("pip", "compile", "--quiet", "--custom-compile-command", "make lock"),
    *("--excludes", "requirements/excludes.txt", "--overrides", "requirements/overrides.txt"),
    *("--no-emit-package", "torch"),
    # The place that the images and the CPU torch wheel are made for, whoever runs this.
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
)
PARTS_OF_DEV = ("contracts", "gateway", "ui", "trainer")


def compile_arguments(name: str, *, upgrade: bool) -> list[str]:
    """The arguments of uv that pin one file."""
    arguments = [*COMPILE, f"requirements/{name}.in", "--output-file", f"requirements/{name}.txt"]
    if name in PARTS_OF_DEV:
        return [*arguments, "--constraints", "requirements/dev.txt"]
    if name == "bench":
        arguments += ["--overrides", "requirements/bench-overrides.txt"]
    if name == "open-webui":
        arguments += ["--excludes", "requirements/open-webui-excludes.txt"]
    return [*arguments, "--upgrade"] if upgrade else arguments


def main(argv: list[str] | None = None) -> int:
    """Pins every file, dev first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args(argv).upgrade
    if not UV.exists():
        sys.stderr.write(f"{UV.relative_to(ROOT)} is not there. Run `make setup` first.\n")
        return 2
    for name in ("dev", *PARTS_OF_DEV, "engine", "bench", "bench-mcq", "bench-trainer", "open-webui"):
        if subprocess.run([UV, *compile_arguments(name, upgrade=upgrade)], cwd=ROOT, check=False).returncode:
            return 1
        sys.stdout.write(f"requirements/{name}.txt\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
