from pathlib import Path

import pytest
from preceptor_contracts.domains import load_domain
from preceptor_trainer.recipes import Recipe, load_recipe

from tests.house.tree import ROOT, shown

DOMAINS = sorted(path.parent for path in (ROOT / "domains").glob("*/domain.yaml"))
RECIPES = sorted((ROOT / "trainer/recipes").glob("*.yaml"))


def test_domains_and_recipes_were_found() -> None:
    assert len(DOMAINS) >= 4
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", DOMAINS, ids=shown)
def test_a_domain_is_complete(path: Path) -> None:
    folder = load_domain(path)
    assert folder.domain.name == path.name
    assert {"domain.yaml", "train.jsonl", "exam.jsonl", "README.md"} <= {file.name for file in path.iterdir()}


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_a_recipe_parses(path: Path) -> None:
    assert isinstance(load_recipe(path.stem), Recipe)


@pytest.mark.parametrize("path", DOMAINS, ids=shown)
def test_a_domain_names_a_recipe_that_exists(path: Path) -> None:
    assert load_domain(path).domain.recipe in {recipe.stem for recipe in RECIPES}
