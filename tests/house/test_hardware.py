"""docs/hardware.md against the planning code that it is written from."""

import re
from types import ModuleType
from typing import Any

import pytest
from preceptor_trainer.plan.hardware_table import hardware_table
from preceptor_trainer.plan.tables import CARDS_GB, as_markdown, card_for
from preceptor_trainer.recipes import recipes_dir

from tests.house.test_docs import DOCS, OUTLINE, rows
from tests.house.test_settings import load_script

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import
PAGE = DOCS / "hardware.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("hardware_table")


@pytest.fixture(scope="module")
def needs(script: ModuleType) -> list[Any]:
    found: list[Any] = script.needs()
    return found


def test_the_page_is_what_make_docs_writes(script: ModuleType, needs: list[Any]) -> None:
    assert PAGE.read_text() == script.render(needs), "Run `make docs`."


def test_the_page_has_the_outline_and_every_recipe_twice() -> None:
    assert re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE) == OUTLINE
    named = [row[0] for row in rows(PAGE)]
    shipped = [path.stem for path in recipes_dir().glob("*.yaml")]
    assert len(shipped) >= 8
    assert [name for name in shipped if named.count(f"`{name}`") != 2] == []


def test_a_gpu_trains_where_the_recipes_table_says_so(script: ModuleType, needs: list[Any]) -> None:
    sizes = [size for size in CARDS_GB if size in script.SIZES_GIB]
    for need in needs:
        trains = [size for size in sizes if script.verdict(need, size).startswith(("beside", "hand-off", "trains"))]
        least = int(card_for(need.training).removesuffix(" GB"))
        assert trains == [size for size in sizes if size >= least], need.recipe.name


def test_beside_means_that_both_fit_with_a_tenth_to_spare(script: ModuleType, needs: list[Any]) -> None:
    beside = [(need, size) for need in needs for size in script.SIZES_GIB if "beside" in script.verdict(need, size)]
    assert len(beside) >= len(needs)
    for need, size in beside:
        share = script.shares(need, size)
        assert need.serving <= share.least * size * 2**30
        assert need.training <= (0.9 - share.most) * size * 2**30
        assert share.most <= script.SHARE


def test_serving_is_counted_with_the_engines_defaults(needs: list[Any]) -> None:
    by_command = {cells[0]: cells[6] for cells in hardware_table("cuda")[1:]}
    assert {need.recipe.name: f"{need.serving / 1e9:.1f} GB" for need in needs} == by_command


def test_the_recipes_page_shows_what_its_command_prints() -> None:
    assert as_markdown(hardware_table("cuda")) in (DOCS / "recipes.md").read_text()
