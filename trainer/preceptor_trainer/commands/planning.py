"""What a training would cost, before it costs anything."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from preceptor_trainer import pipeline, stages
from preceptor_trainer.commands import options
from preceptor_trainer.commands.options import (
    ContradictionsOption,
    DataOption,
    DomainArgument,
    EncodingOption,
    EpochsOption,
    LeakOption,
    MethodOption,
    RecipeOption,
    SeedOption,
    StepsOption,
    begin,
)
from preceptor_trainer.prepare.report import Reading
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import Stage
from preceptor_trainer.stages import Workshop

if TYPE_CHECKING:
    from preceptor_trainer.plan.preview import Asked

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Plan for the base model of this config.json or folder; needs no weights."),
]
GpuOption = Annotated[
    float | None, typer.Option("--gpu-gb", min=1, help="Plan for a GPU of so much memory in place of this machine.")
]
PriceOption = Annotated[
    float | None, typer.Option("--price-per-hour", min=0, help="Of the machine, in any currency; tells the cost.")
]
ProbeOption = Annotated[
    bool, typer.Option("--probe/--no-probe", help="Measure time and memory in three real steps, where the weights are.")
]
DeviceOption = Annotated[Literal["cuda", "cpu"], typer.Option("--device", help="What to count memory for.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]


def plan(
    domain: DomainArgument,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    epochs: EpochsOption = None,
    max_steps: StepsOption = None,
    data: DataOption = None,
    encoding: EncodingOption = None,
    allow_leak: LeakOption = False,
    allow_contradictions: ContradictionsOption = False,
    seed: SeedOption = None,
    config: ConfigOption = None,
    gpu_gb: GpuOption = None,
    price_per_hour: PriceOption = None,
    probe: ProbeOption = True,
) -> int:
    """Tells parameters, memory, time, cost and whether the result can be served; makes a run where it can be one."""
    from preceptor_trainer.plan.preview import Asked, is_preview

    shop = options.open_shop()
    overrides = Overrides(recipe=recipe, method=method, epochs=epochs, max_steps=max_steps, seed=seed)
    asked = Asked(domain, overrides, data, config, gpu_gb, price_per_hour, encoding)
    if is_preview(shop.settings, asked):
        return _show_preview(shop, asked)
    reading = Reading(encoding, allow_leak, allow_contradictions)
    new = pipeline.start_run(shop, domain, overrides, data=data, reading=reading)
    shop = begin(shop, new.path, ["resume", new.id])
    work = partial(stages.plan, in_full=True, probed=probe, price_per_hour=price_per_hour)
    with new.exclusive():
        pipeline.run_stage(shop, new, Stage.PLAN, work)
    shop.terminal.say(f"Go on with `preceptor-trainer resume {new.id}`.")
    return 0


def _show_preview(shop: Workshop, asked: Asked) -> int:
    from preceptor_trainer.plan.forecast import refuse_misfit
    from preceptor_trainer.plan.preview import preview
    from preceptor_trainer.plan.tables import plan_view

    seen = preview(shop.settings, asked)
    shop.terminal.show(plan_view(seen.plan, seen.recipe, seen.hardware, seen.base_model))
    refuse_misfit(seen.plan, seen.hardware)
    shop.terminal.say("No run was made: this is a plan for other settings or another machine.")
    return 0


def recipes(device: DeviceOption = "cuda", markdown: MarkdownOption = False) -> int:
    """Lists the shipped recipes with what each trains and what memory it takes at the most."""
    from preceptor_trainer.plan.hardware_table import hardware_table
    from preceptor_trainer.plan.tables import as_markdown, as_table

    shop = options.open_shop()
    cells = hardware_table(device)
    if markdown:
        shop.terminal.say(as_markdown(cells))
    else:
        shop.terminal.show(as_table(cells))
    return 0
