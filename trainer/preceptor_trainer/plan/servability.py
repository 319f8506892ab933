"""Whether the engine can serve what a recipe trains, and which settings it then needs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from preceptor_contracts.frozen import Frozen

from preceptor_trainer.plan.bases import short_name
from preceptor_trainer.recipes import Recipe

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.32 takes as `--max-lora-rank` (its config/lora.py)."""
FP8_FLAG = "fp8_per_channel"
"""vLLM 0.32 quantises 16-bit weights under this name; its plain `fp8` is for weights that are quantised already."""


class Finding(Frozen):
    """One thing to know before a training."""

    level: Literal["refused", "setting", "note"]
    """`refused`: the engine cannot serve it. `setting`: it can once that is set. `note`: it can."""
    what: str
    fix: str = ""


class Place(NamedTuple):
    """Where the result is to be served."""

    base_model: str
    """`BASE_MODEL`'s identity."""
    max_lora_rank: int
    """`ENGINE_MAX_LORA_RANK`."""
    device: str
    """`cpu` or `cuda`."""


def check_servability(
    recipe: Recipe, place: Place, *, base_model: str, positions: int, longest: int, has_template: bool | None
) -> tuple[Finding, ...]:
    """Lists what stands in the way of serving; what no recipe may ask for at all, the recipe's schema refuses.

    Args:
        recipe: Resolved.
        place: Where it is to be served.
        base_model: What is planned for.
        positions: Longest context of that base model, in tokens; 0 where its configuration does not say.
        longest: Tokens of the longest record.
        has_template: Whether its tokenizer has a chat template; None where no tokenizer is at hand.
    """
    found = []
    if has_template is False:
        found.append(
            Finding(
                level="refused",
                what=f"{base_model} has no chat template, so gateway and trainer could not render the same prompt",
                fix="take its instruction-tuned version",
            )
        )
    if positions and longest > positions:
        found.append(
            Finding(
                level="refused",
                what=f"the longest record has {longest:,} tokens, and {base_model} was made for {positions:,}",
                fix="shorten the records, or take a base model with a longer context",
            )
        )
    if short_name(base_model) != short_name(place.base_model):
        found.append(
            Finding(
                level="setting",
                what=f"trainer and engine use {place.base_model}",
                fix=f"set BASE_MODEL={base_model} in .env and restart the engine",
            )
        )
    elif recipe.base_model and short_name(recipe.base_model) != short_name(base_model):
        found.append(Finding(level="note", what=f"recipe {recipe.name} was made for {recipe.base_model}"))
    found += _of_the_method(recipe, place)
    if has_template is None:
        found.append(
            Finding(
                level="note",
                what=f"the tokenizer of {base_model} is not here; its chat template is checked by `prepare`",
            )
        )
    return tuple(found)


def _of_the_method(recipe: Recipe, place: Place) -> list[Finding]:
    found = []
    if recipe.method == "full":
        found.append(
            Finding(
                level="note",
                what="full makes no adapter: the engine serves the result as a base model of its own",
                fix="set BASE_MODEL to the folder that stage publish writes",
            )
        )
    elif recipe.rank > place.max_lora_rank:
        found.append(
            Finding(
                level="setting",
                what=f"rank {recipe.rank} is above the engine's limit of {place.max_lora_rank}",
                fix=f"set ENGINE_MAX_LORA_RANK={needed_rank(recipe.rank)} in .env and restart the engine",
            )
        )
    if recipe.serving_quantization == "fp8":
        where = "" if place.device == "cuda" else "; on a processor it serves 16 or 32 bits"
        found.append(
            Finding(
                level="setting" if place.device == "cuda" else "note",
                what=f"the recipe wants 8-bit base weights in the engine, on a GPU{where}",
                fix="set ENGINE_QUANTIZATION=fp8 in .env and restart the engine",
            )
        )
    return found


def needed_rank(rank: int) -> int:
    """The smallest limit of the engine that lets an adapter of this rank in."""
    return next(limit for limit in ENGINE_RANKS if limit >= rank)


def engine_flags(recipe: Recipe) -> tuple[str, ...]:
    """VLLM's flags that serve what the recipe trains."""
    flags = () if recipe.method == "full" else ("--enable-lora", f"--max-lora-rank {needed_rank(recipe.rank)}")
    return (*flags, f"--quantization {FP8_FLAG}") if recipe.serving_quantization == "fp8" else flags
