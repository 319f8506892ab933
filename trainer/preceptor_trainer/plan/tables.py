"""Plans laid out for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from preceptor_trainer.hardware import Hardware
from preceptor_trainer.plan.forecast import Plan, gigabytes
from preceptor_trainer.plan.memory import Parts
from preceptor_trainer.recipes import Recipe

_SHOWN_MODULES = 12


def plan_view(plan: Plan, recipe: Recipe, hardware: Hardware, base: str, *, in_full: bool = True) -> RenderableType:
    """Lays out a plan.

    Args:
        plan: Made for the other three.
        recipe: Resolved.
        hardware: Where it is to be trained.
        base: Base model's id.
        in_full: With parameters by module, memory by part, and what serving takes.
    """
    summary = _summary(plan, recipe, hardware, base)
    if not in_full:
        return Group(summary, _serving(plan)) if plan.findings else summary
    training = _memory("Memory of the training, estimated", plan.memory_bytes)
    engine = _memory("Memory of the engine, at least", plan.serving_bytes)
    return Group(summary, _modules(plan), training, engine, _serving(plan))


def _summary(plan: Plan, recipe: Recipe, hardware: Hardware, base: str) -> Table:
    table = Table(title="Plan", show_header=False, title_justify="left")
    share = plan.trainable_parameters / plan.base_parameters
    rank = "" if recipe.method == "full" else f", rank {recipe.rank}"
    checkpointing = "with" if plan.gradient_checkpointing else "without"
    records = recipe.batch_size * recipe.accumulation
    about = "about " if plan.tokens_estimated else ""
    rows = {
        "base model": f"{base}, {plan.base_parameters:,} parameters",
        "recipe": f"{recipe.name}: {recipe.method}, {recipe.dtype}{rank}",
        "trainable": f"{plan.trainable_parameters:,} parameters ({share:.1%})",
        "device": f"{hardware.name} ({hardware.device}"
        + (f", {hardware.threads} threads)" if hardware.threads else ")"),
        "steps": f"{plan.steps} of {records} records, {about}{plan.tokens:,} tokens",
        "memory": f"about {gigabytes(plan.memory_total_bytes)} of {gigabytes(plan.memory_available_bytes)} free, "
        f"{checkpointing} gradient checkpointing",
    }
    if plan.probe:
        rows["probe"] = (
            f"{plan.probe.tokens_per_second:.0f} tokens/s, peak {gigabytes(plan.probe.peak_bytes)}, measured in "
            f"{len(plan.probe.seconds)} steps"
        )
    if plan.matrix_flops:
        rows["matrix rate"] = f"{plan.matrix_flops / 1e9:.0f} GFLOP/s in float32, measured"
    rows["time"] = _time(plan)
    if plan.cost is not None:
        rows["cost"] = f"about {plan.cost:.2f} at {plan.price_per_hour:g} an hour"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _time(plan: Plan) -> str:
    if plan.expected_seconds is None:
        return "unknown: plan on that machine, where its weights are, to have it measured"
    minutes = max(1, round(plan.expected_seconds / 60))
    source = "from the probe" if plan.probe else "from the matrix rate"
    hours = f" ({minutes / 60:.1f} h)" if minutes >= 90 else ""
    return f"about {minutes} min{hours}, {source}"


def _modules(plan: Plan) -> Table:
    table = Table(title="Trainable parameters", title_justify="left")
    for name, side in (("module", "left"), ("layers", "right"), ("shape", "right"), ("trainable", "right")):
        table.add_column(name, justify="right" if side == "right" else "left")
    # A full training names every kind of weight there is; some bases have dozens.
    shown = sorted(plan.modules, key=lambda count: -count.trainable)[:_SHOWN_MODULES]
    for count in (count for count in plan.modules if count in shown):
        table.add_row(count.module, str(count.layers), count.shape, f"{count.trainable:,}")
    rest = sum(count.trainable for count in plan.modules) - sum(count.trainable for count in shown)
    if rest:
        table.add_row(f"{len(plan.modules) - len(shown)} more kinds", "", "", f"{rest:,}")
    table.add_row("all", "", "", f"{plan.trainable_parameters:,}")
    return table


def _memory(title: str, parts: Parts) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for part, count in parts.items():
        table.add_row(part, f"{count / 1e9:.2f} GB")
    table.add_row("all", f"{sum(parts.values()) / 1e9:.2f} GB")
    return table


def _serving(plan: Plan) -> Table:
    table = Table(title="Serving", title_justify="left", show_header=False)
    table.add_row("engine flags", " ".join(plan.engine_flags) or "none beyond the usual")
    for finding in plan.findings:
        table.add_row(finding.level, f"{finding.what}; {finding.fix}" if finding.fix else finding.what)
    return table


class RecipeRow(NamedTuple):
    """One recipe of the hardware table."""

    recipe: Recipe
    trainable: int
    training_bytes: int
    """With gradient checkpointing, unless the recipe turns it off."""
    serving_bytes: int


def recipe_rows(rows: Sequence[RecipeRow]) -> list[tuple[str, ...]]:
    """The cells of the hardware table, header first."""
    cells: list[tuple[str, ...]] = [
        ("recipe", "base model", "method", "trainable", "training", "fits in", "serving", "fits in")
    ]
    for row in rows:
        training, serving = row.training_bytes, row.serving_bytes
        cells.append(
            (
                *(row.recipe.name, row.recipe.base_model, row.recipe.method, f"{row.trainable:,}"),
                *(gigabytes(training), card_for(training), gigabytes(serving), card_for(serving)),
            )
        )
    return cells


CARDS_GB = (8, 12, 16, 24, 32, 48, 80, 141)
"""Memory of usual GPUs, in GB as their makers count them, which are GiB."""
_USABLE = 0.9
"""A tenth stays spare, for fragments and for what the estimate misses."""


def card_for(count: int) -> str:
    """The smallest usual GPU that so many bytes fit on."""
    return next((f"{size} GB" for size in CARDS_GB if count <= size * 2**30 * _USABLE), "more")


def as_table(cells: Sequence[tuple[str, ...]]) -> Table:
    """For a terminal of 80 columns."""
    table = Table(title="Recipes, for the longest records that each allows", title_justify="left", box=SIMPLE)
    for name in ("recipe, base model", "method", "trainable", "training", "serving"):
        table.add_column(name, justify="left" if name in ("recipe, base model", "method") else "right")
    for recipe, base, method, trainable, training, on, serving, served_on in cells[1:]:
        name = f"{recipe}\n{base.rpartition('/')[2]}"
        table.add_row(name, method, trainable, f"{training}\non {on}", f"{serving}\non {served_on}")
    return table


def as_markdown(cells: Sequence[tuple[str, ...]]) -> str:
    """For a page."""
    lines = [cells[0], tuple("---" for _ in cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
