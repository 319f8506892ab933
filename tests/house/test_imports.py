import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.tree import MEMBERS, Member, shown

# Brought by a declared package that is of no use without it, and named by that package's own documentation.
COMES_WITH = {"starlette": "fastapi"}


def imported(member: Member) -> Iterator[tuple[str, str]]:
    """Top-level names that a member imports, with the place."""
    for module in member.modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            else:
                continue
            for name in names:
                yield name.split(".")[0], f"{shown(module)}:{node.lineno}"


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.package)
def test_a_member_declares_what_it_imports(member: Member) -> None:
    declared: set[str] = {canonicalize_name(Requirement(line).name) for line in member.project["dependencies"]}
    # services/engine runs where requirements/engine.txt is installed, vLLM and its transformers included.
    declared |= {"torch", "transformers"} if member.requirements == "engine" else set()
    distributions = packages_distributions()
    missing = []
    for name, place in imported(member):
        if name in sys.stdlib_module_names or name == member.package:
            continue
        owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
        if not owners & declared and COMES_WITH.get(name) not in declared:
            missing.append(f"{place} imports {name}")
    assert missing == []


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.package)
def test_a_member_imports_what_it_declares(member: Member) -> None:
    # The server's extras and the libraries behind transformers' and TRL's options are used without an import of ours.
    # So is a driver that a URL names.
    by_name = {"accelerate", "bitsandbytes", "psycopg", "tensorboard", "uvicorn"}
    owners = packages_distributions()
    used = {canonicalize_name(owner) for name, _ in imported(member) for owner in owners.get(name, [name])}
    declared = {canonicalize_name(Requirement(line).name) for line in member.project["dependencies"]}
    assert declared - used - by_name == set()
