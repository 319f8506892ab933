import re
import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT, shown, tracked_files

MAX_TARGETS = 20
MAX_TARGET_LINES = 3
# Spelled in two halves, so that this file does not find itself.
HOME_OR_WORK = re.compile(r"(?<![\w.$}>-])/(?:" + r"home|root|Users|work|tmp/scratch" + r")/\w")
INDEX = re.compile(r"https?://[^\s\"'`]*/" + r"simple\b|index-url[ =]+https?:|find-links[ =]")
MAX_KIB = 2048


def texts() -> dict[str, str]:
    found = {}
    for path in tracked_files():
        try:
            found[shown(path)] = path.read_text()
        except UnicodeDecodeError:
            continue
    return found


def offending(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def make_targets() -> dict[str, list[str]]:
    """Targets of the Makefile with their lines."""
    found: dict[str, list[str]] = {}
    target = ""
    for line in (ROOT / "Makefile").read_text().splitlines():
        if match := re.match(r"^([a-z0-9-]+):(?!=)", line):
            target = match[1]
            found[target] = []
        elif line.startswith("\t"):
            found[target].append(line)
    return found


def test_no_path_of_somebodys_machine() -> None:
    assert offending(HOME_OR_WORK) == []


def test_no_address_of_a_package_index() -> None:
    assert offending(INDEX) == []


def test_no_big_file() -> None:
    assert [shown(path) for path in tracked_files() if path.stat().st_size > MAX_KIB * 1024] == []


def test_the_makefile_stays_a_table_of_contents() -> None:
    targets = make_targets()
    assert 5 <= len(targets) <= MAX_TARGETS
    assert {name: lines for name, lines in targets.items() if len(lines) > MAX_TARGET_LINES} == {}


def test_every_target_explains_itself() -> None:
    shown_targets = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown_targets.splitlines()} == set(make_targets())


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=shown)
def test_a_page_names_targets_that_exist(page: Path) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
    named = {target for piece in code for target in re.findall(r"(?:^|[`\s;&])make ([a-z][a-z0-9-]*)", piece)}
    assert named <= set(make_targets())


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize("name", ["Procfile", "Procfile.demo"])
def test_a_procfile_starts_what_is_there(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert {line.split(":")[0] for line in lines} >= {"engine", "gateway", "ui"}
    # Without exec a shell stands between honcho and the process, and its exit code is the shell's.
    assert [line for line in lines if ": exec " not in line] == []


def test_the_demo_starts_what_serve_starts() -> None:
    serve = set((ROOT / "Procfile").read_text().splitlines())
    demo = set((ROOT / "Procfile.demo").read_text().splitlines())
    assert {line.split(":")[0] for line in demo - serve} == {"story"}
