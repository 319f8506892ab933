"""Every shipped recipe with its memory: which GPU, or how much of a machine's memory, it takes."""

from __future__ import annotations

from typing import Literal

from preceptor_trainer.hardware import Hardware
from preceptor_trainer.plan.bases import find_config
from preceptor_trainer.plan.memory import Batch, estimate_memory, estimate_serving
from preceptor_trainer.plan.parameters import count_parameters
from preceptor_trainer.plan.tables import RecipeRow, recipe_rows
from preceptor_trainer.recipes import Overrides, load_recipe, recipes_dir, resolve_recipe

_ADAPTERS, _CONTEXT = 2, 2048
"""The engine's settings unless changed."""


def hardware_table(device: Literal["cuda", "cpu"]) -> list[tuple[str, ...]]:
    """Makes the cells of the table, header first, for records as long as each recipe allows."""
    shipped = [load_recipe(path.stem) for path in sorted(recipes_dir().glob("*.yaml"))]
    # Paged optimizers are for GPUs.
    fitting = [one for one in shipped if device == "cuda" or not one.optimizer.startswith("paged")]
    return recipe_rows([_row(one.name, device) for one in fitting if one.base_model])


def _row(name: str, device: Literal["cuda", "cpu"]) -> RecipeRow:
    hardware = Hardware(device, device, 0, 0, "bfloat16" if device == "cuda" else "float32")
    recipe = resolve_recipe(name, Overrides(), hardware)
    counts = count_parameters(find_config(recipe.base_model), recipe)
    batch = Batch(recipe.batch_size, recipe.max_length)
    checkpointing = recipe.gradient_checkpointing != "off"
    return RecipeRow(
        recipe,
        counts.trainable,
        sum(estimate_memory(counts, recipe, device, batch, checkpointing=checkpointing).values()),
        sum(estimate_serving(counts, recipe, device, adapters=_ADAPTERS, context=_CONTEXT).values()),
    )
