"""The main path: prepare, plan, train, publish, evaluate, promote. Read `STAGES` first, then the functions below it.

Each stage reads what earlier ones left in the run directory and leaves its own result there, so that any process can
take a run up where another was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.base_models import base_model_source, identify_base_model
from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import BaseModelIdentity

from preceptor_trainer import stages
from preceptor_trainer.disk import full_disk_told
from preceptor_trainer.hand_off import handed_off
from preceptor_trainer.hardware import Hardware, detect_hardware
from preceptor_trainer.prepare import dataset as preparing
from preceptor_trainer.prepare.dataset import Given
from preceptor_trainer.prepare.report import Length, PreparationReport, Reading, write_report
from preceptor_trainer.prepare.report_page import report_page, summary_lines
from preceptor_trainer.prepare.workplace import workplace
from preceptor_trainer.provenance import new_spec
from preceptor_trainer.ranks import ranks
from preceptor_trainer.recipes import Overrides, Recipe, resolve_recipe
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Workshop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING_SAID = Reading()


def start_run(
    shop: Workshop, domain: str, overrides: Overrides, *, data: Path | None = None, reading: Reading = NOTHING_SAID
) -> RunDir:
    """Stage prepare: checks everything a person wrote, and only then makes a run directory.

    Args:
        shop: Settings and terminal.
        domain: Its name.
        overrides: Recipe choices of the command line.
        data: Records to train on in place of the domain's, in any known format.
        reading: What the command line says about the data.

    Raises:
        InvalidInput: Something is wrong with domain, records, exam or recipe; nothing was written.
    """
    from preceptor_trainer.tokens import hub_revision, load_tokenizer

    if ranks() > 1:
        raise InvalidInput(
            "Several processes can only go on with a run that is there already.",
            hint=f"First `preceptor-trainer plan {domain}` without a launcher, then `resume` its run under it.",
        )
    settings = shop.settings
    folder = find_domain(settings.domains_dir, domain)
    questions = preparing.read_exam(folder)
    hardware = detect_hardware()
    recipe = _recipe_for(shop, folder, overrides, hardware)
    source = base_model_source(settings.base_model, settings.base_models_dir)
    given = Given(folder.domain, _data_of(folder, data), questions, lengths_of(recipe), reading, shop.terminal.progress)

    def base_model() -> BaseModelIdentity:
        return identify_base_model(settings.base_model, settings.base_models_dir, hub_revision=hub_revision(source))

    @cache
    def tokenizer() -> PreTrainedTokenizerBase:
        base_model()
        return load_tokenizer(source)

    with workplace(settings.runs_dir) as work:
        outcome = preparing.prepare(given, work, tokenizer)
        _, prepared = outcome.accepted()
        spec = new_spec(
            folder,
            recipe,
            hardware,
            tokenizer(),
            data=given.data,
            dataset=prepared.dataset,
            base_model=base_model(),
            base_source=source,
        )
        run = RunDir.create(settings.runs_dir, spec, work)
    for warning in outcome.report.warnings:
        run.record(Stage.PREPARE, "warning", message=warning)
    run.finish(Stage.PREPARE, prepared)
    for line in summary_lines(outcome.report):
        shop.terminal.say(line)
    shop.terminal.say(f"Run {run.id}: {_told(prepared)}")
    return run


def _told(prepared: preparing.Prepared) -> str:
    dataset, lengths = prepared.dataset, prepared.lengths
    removed = dataset.duplicates_removed + dataset.near_duplicates_removed
    leaked = f"{dataset.leaks.questions} exam questions" if dataset.leaks else "no exam question"
    return (
        f"{dataset.records} records, {dataset.tokens:,} tokens ({lengths.shortest} to {lengths.longest} each, "
        f"median {lengths.median}), {removed} duplicates removed, {leaked} among them."
    )


def _data_of(folder: DomainFolder, data: Path | None) -> Path:
    if data is None and not folder.train.exists():
        raise InvalidInput(
            f"Domain {folder.domain.name!r} has no {folder.train.name}.",
            code="file_missing",
            hint="Name your file: --data my.csv; or put records there.",
        )
    if data is not None and data.is_file() and folder.exam.exists() and data.samefile(folder.exam):
        raise InvalidInput(f"{data} is the exam.", code="exam_leak", hint="Name a file of training records.")
    return data or folder.train


def _recipe_for(shop: Workshop, folder: DomainFolder, overrides: Overrides, hardware: Hardware) -> Recipe:
    recipe = resolve_recipe(folder.domain.recipe, overrides, hardware, domain_epochs=folder.domain.epochs)
    served = shop.settings.engine_max_lora_rank
    if recipe.method != "full" and recipe.rank > served:
        raise InvalidInput(
            f"Recipe {recipe.name!r} has rank {recipe.rank}; the engine serves up to {served}.",
            code="rank_not_served",
            hint=f"Set ENGINE_MAX_LORA_RANK={recipe.rank} in .env and restart the engine, or lower the rank.",
        )
    return recipe


def validate(
    shop: Workshop,
    domain: str,
    overrides: Overrides,
    *,
    data: Path | None = None,
    reading: Reading = NOTHING_SAID,
    report_dir: Path | None = None,
) -> PreparationReport:
    """Does all of stage prepare's checks, prints the report, and makes no run.

    Args:
        shop: Settings and terminal.
        domain: Its name.
        overrides: Recipe choices of the command line.
        data: Records to check in place of the domain's.
        reading: What the command line says about the data.
        report_dir: Where `report.json` and `report.md` are kept; None keeps none.

    Raises:
        InvalidInput: Something is wrong with domain, records, exam or recipe; the report was printed before.
    """
    settings = shop.settings
    folder = find_domain(settings.domains_dir, domain)
    questions = preparing.read_exam(folder)
    recipe = _recipe_for(shop, folder, overrides, detect_hardware())
    given = Given(folder.domain, _data_of(folder, data), questions, lengths_of(recipe), reading, shop.terminal.progress)
    tokenizer = _tokenizer_if_there(shop)
    load = None if tokenizer is None else lambda: tokenizer
    with workplace(settings.runs_dir) as work:
        outcome = preparing.prepare(given, work, load, thorough=True)
    shop.terminal.say(report_page(outcome.report))
    if report_dir is not None:
        write_report(report_dir, outcome.report)
        shop.terminal.say(f"The report is {report_dir / 'report.md'}.")
    if outcome.faults:
        raise InvalidInput(
            f"{given.data} is not fit to train on, for {len(outcome.faults)} reason(s); the report tells them.",
            code=outcome.faults[0].code,
            hint=" ".join(dict.fromkeys(fault.hint for fault in outcome.faults)),
        )
    return outcome.report


def _tokenizer_if_there(shop: Workshop) -> PreTrainedTokenizerBase | None:
    from preceptor_trainer.tokens import load_tokenizer

    try:
        return load_tokenizer(base_model_source(shop.settings.base_model, shop.settings.base_models_dir))
    except PrerequisiteError as error:
        shop.terminal.say(f"Token lengths are not counted: {error.message}")
        return None


def lengths_of(recipe: Recipe) -> Length:
    """What a recipe says about the records."""
    return Length(recipe.max_length, recipe.validation_share, recipe.seed)


def last_stage(run: RunDir) -> Stage:
    """Where a run ends: all weights make a new base model, which the engine must be restarted for."""
    return Stage.PUBLISH if run.spec.recipe.method == "full" else Stage.PROMOTE


def go_on(shop: Workshop, run: RunDir, *, last: Stage) -> None:
    """Runs every stage that is not finished, up to `last`; hands the engine's GPU over for those that need it."""
    if shop.hand_off and last is not Stage.PREPARE and not run.is_done(Stage.TRAIN):
        with handed_off(shop):
            if run.is_done(Stage.PLAN) and not any(run.events(Stage.TRAIN, "checkpoint")):
                # That plan may have been made beside the engine, with less memory.
                run_stage(shop, run, Stage.PLAN, STAGES[Stage.PLAN])
            _go_on(shop, run, last=min(last, Stage.TRAIN, key=list(STAGES).index))
    _go_on(shop, run, last=last)


def _go_on(shop: Workshop, run: RunDir, *, last: Stage) -> None:
    for stage, work in STAGES.items():
        if not run.is_done(stage):
            run_stage(shop, run, stage, work)
        if stage in (last, last_stage(run)):
            return


def run_stage(shop: Workshop, run: RunDir, stage: Stage, work: Callable[[Workshop, RunDir], Frozen]) -> None:
    """Runs one stage and records how it ended.

    Raises:
        PreceptorError: As the stage says, or the disk is full.
    """
    try:
        with full_disk_told(shop.way_on(run)):
            run.record(stage, "started")
            result = work(shop, run)
            run.finish(stage, result)
    except PreceptorError as error:
        # On a full disk the sentence matters more than the event.
        with suppress(OSError):
            run.record(stage, "failed", message=error.message, code=error.code, hint=error.hint)
        raise


def redo(shop: Workshop, run: RunDir, stage: Stage) -> None:
    """Runs one stage again, or for the first time.

    Raises:
        InvalidInput: The stage before it has not finished, or the run has no such stage.
    """
    order = list(STAGES)
    if order.index(stage) > order.index(last_stage(run)):
        raise InvalidInput(
            f"Run {run.id!r} trains all weights, so it ends with stage {last_stage(run).value!r}.",
            code="stage_missing",
            hint=f"Serve what it made, then: preceptor-trainer exam {run.spec.domain} --served {run.spec.domain}:base",
        )
    for earlier in order[: order.index(stage)]:
        if not run.is_done(earlier):
            raise InvalidInput(
                f"Run {run.id!r} has not finished stage {earlier.value!r}, which {stage.value!r} needs.",
                code="stage_missing",
                hint=f"Run `preceptor-trainer resume {run.id}`, which does all that is left.",
            )
    run_stage(shop, run, stage, STAGES[stage])


def check_gateway(shop: Workshop, run: RunDir) -> None:
    """Asks the gateway to render one exam question, so that a training is not spent on a stack that cannot serve it.

    Raises:
        PreceptorError: It is down, refuses the key, lacks the domain, or makes other ids than the trainer.
    """
    from preceptor_trainer.evaluate.conduct import require_judge
    from preceptor_trainer.parity import certify, exam_sample
    from preceptor_trainer.tokens import load_tokenizer

    folder = stages.folder_of(shop, run)
    questions = preparing.read_exam(folder)
    require_judge(shop.settings, questions)
    sample = exam_sample(folder.domain, questions[0])

    async def ask() -> None:
        async with shop.connect(shop.settings) as gateway:
            await certify(gateway, folder.domain, [sample], load_tokenizer(run.spec.base_source), concurrency=1)

    asyncio.run(ask())


STAGES: dict[Stage, Callable[[Workshop, RunDir], Frozen]] = {
    Stage.PREPARE: stages.prepare,
    Stage.PLAN: stages.plan,
    Stage.TRAIN: stages.train,
    Stage.PUBLISH: stages.publish,
    Stage.EVALUATE: stages.evaluate,
    Stage.PROMOTE: stages.promote,
}
