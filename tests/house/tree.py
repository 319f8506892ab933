"""The checkout as the house rules see it: members, their modules, tracked files."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Member(NamedTuple):
    """One distribution of ours."""

    folder: Path
    package: str
    requirements: str
    """Name of its files in requirements/."""

    @property
    def project(self) -> dict[str, Any]:
        """The `[project]` table."""
        table: dict[str, Any] = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        return table

    @property
    def modules(self) -> list[Path]:
        """Its Python files."""
        return sorted((self.folder / self.package).rglob("*.py"))


MEMBERS = (
    Member(ROOT / "packages/contracts", "preceptor_contracts", "contracts"),
    Member(ROOT / "services/engine", "preceptor_engine", "engine"),
    Member(ROOT / "services/gateway", "preceptor_gateway", "gateway"),
    Member(ROOT / "services/ui", "preceptor_ui", "ui"),
    Member(ROOT / "trainer", "preceptor_trainer", "trainer"),
)


def shipped_modules() -> list[Path]:
    """Every Python file that is not a test."""
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    bench = sorted((ROOT / "bench").rglob("*.py"))
    return [*scripts, *bench, *(module for member in MEMBERS for module in member.modules)]


def tracked_files() -> list[Path]:
    """Files of the repository and those about to join it: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def shown(path: Path) -> str:
    """A path as a reader of the repository knows it."""
    return str(path.relative_to(ROOT))
