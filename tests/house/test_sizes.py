import ast
from pathlib import Path

import pytest

from tests.house.tree import shipped_modules, shown

MODULE_LINES = 400
FUNCTION_LINES = 60
MODULES = shipped_modules()


def test_modules_were_found() -> None:
    assert len(MODULES) >= 40


@pytest.mark.parametrize("module", MODULES, ids=shown)
def test_a_module_fits_a_reading(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("module", MODULES, ids=shown)
def test_functions_fit_a_screen(module: Path) -> None:
    long = [
        f"{node.name}: {lines}"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long
