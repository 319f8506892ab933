import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.tree import MEMBERS, ROOT, Member

FOLDER = ROOT / "requirements"
LOCKS = sorted(FOLDER / f"{source.stem}.txt" for source in FOLDER.glob("*.in"))
PINNED = [*LOCKS, FOLDER / "torch.txt"]
PIN = re.compile(r"^[a-z0-9._-]+==[^\s;]+$")
# Torch comes from torch.txt, our own members from the checkout.
ELSEWHERE = {"torch", *(f"preceptor-{member.requirements}" for member in MEMBERS)}


def lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]


def pins(path: Path) -> dict[str, Version]:
    return {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in lines(path)}


def wanted(path: Path) -> list[Requirement]:
    """What an .in file asks for, the files it includes among it."""
    found = []
    for line in lines(path):
        found += wanted(FOLDER / line.split()[1]) if line.startswith("-r ") else [Requirement(line)]
    return found


def unmet(requirements: list[Requirement], have: dict[str, Version]) -> list[str]:
    return [
        str(requirement)
        for requirement in requirements
        if (name := canonicalize_name(requirement.name)) not in ELSEWHERE
        and (name not in have or not requirement.specifier.contains(have[name], prereleases=True))
    ]


def test_every_member_has_a_lock_file() -> None:
    assert {path.stem for path in LOCKS} == {
        *(member.requirements for member in MEMBERS),
        "dev",
        "bench",
        "bench-mcq",
        "bench-trainer",
        "open-webui",
    }


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_every_line_is_a_pin(path: Path) -> None:
    assert lines(path)
    assert [line for line in lines(path) if not PIN.match(line)] == []


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_says_where_packages_come_from(path: Path) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host|\s/\w", path.read_text())


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_file_fits_its_source(path: Path) -> None:
    assert unmet(wanted(path.with_suffix(".in")), pins(path)) == [], "Run `make lock`."


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.package)
def test_a_lock_file_holds_what_its_member_declares(member: Member) -> None:
    declared = [Requirement(line) for line in member.project["dependencies"]]
    assert unmet(declared, pins(FOLDER / f"{member.requirements}.txt")) == []


@pytest.mark.parametrize("name", ["contracts", "gateway", "ui", "trainer"])
def test_a_lock_file_is_a_part_of_the_one_that_was_tested(name: str) -> None:
    assert pins(FOLDER / f"{name}.txt").items() <= pins(FOLDER / "dev.txt").items()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_no_lock_file_brings_a_second_torch(path: Path) -> None:
    kept_out = {canonicalize_name(line) for line in lines(FOLDER / "excludes.txt")} | {"torch"}
    found = {name for name in pins(path) if name in kept_out or name.startswith("nvidia-")}
    assert found == set()
