"""The one-shot and its stages as commands of their own."""

from __future__ import annotations

from pathlib import Path

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.report import Verdict

from preceptor_trainer import pipeline
from preceptor_trainer.commands import options
from preceptor_trainer.commands.options import (
    NOT_BETTER,
    AlsoOption,
    ContradictionsOption,
    DataOption,
    DomainArgument,
    EncodingOption,
    EpochsOption,
    GuardOption,
    HandOffOption,
    LeakOption,
    MethodOption,
    PassageOption,
    PromoteOption,
    RecipeOption,
    ReportDirOption,
    RunArgument,
    SeedOption,
    StepsOption,
    ValidateOption,
    begin,
    open_run,
)
from preceptor_trainer.prepare.report import Reading
from preceptor_trainer.ranks import is_follower
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Evaluated, ExamWishes, Promoted, Workshop, follow


def run(
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
    promote: PromoteOption = True,
    hand_off: HandOffOption = False,
) -> int:
    """Everything: prepare, plan, train, publish, evaluate, promote if better."""
    shop = options.open_shop()._replace(hand_off=hand_off)
    shop.settings.admin_key()
    reading = Reading(encoding, allow_leak, allow_contradictions)
    new = pipeline.start_run(
        shop, domain, _overrides(recipe, method, epochs, max_steps, seed), data=data, reading=reading
    )
    shop = begin(shop, new.path, _resume(new, promote=promote, hand_off=hand_off))
    with new.exclusive():
        if pipeline.last_stage(new) is Stage.PROMOTE:
            pipeline.check_gateway(shop, new)
        return _finish(shop, new, last=Stage.PROMOTE if promote else Stage.EVALUATE)


def prepare(
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
    validate_only: ValidateOption = False,
    report_dir: ReportDirOption = None,
) -> int:
    """Checks a domain's records and makes a run of them."""
    overrides = _overrides(recipe, method, epochs, max_steps, seed)
    reading = Reading(encoding, allow_leak, allow_contradictions)
    if validate_only:
        pipeline.validate(options.open_shop(), domain, overrides, data=data, reading=reading, report_dir=report_dir)
        return 0
    if report_dir is not None:
        raise InvalidInput(
            f"--report-dir {str(report_dir)!r} was given without --validate-only.",
            hint="Without it the report is in the run, under preparation/.",
        )
    return _begin(domain, overrides, data, reading, last=Stage.PREPARE)


def train(
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
    hand_off: HandOffOption = False,
) -> int:
    """Prepares, plans and trains; needs no gateway, unless the engine is to make way."""
    reading = Reading(encoding, allow_leak, allow_contradictions)
    overrides = _overrides(recipe, method, epochs, max_steps, seed)
    return _begin(domain, overrides, data, reading, last=Stage.TRAIN, hand_off=hand_off)


def publish(run_id: RunArgument) -> int:
    """Publishes a trained run's adapter, unpromoted, and has the gateway load it."""
    return _redo(run_id, Stage.PUBLISH)


def evaluate(
    run_id: RunArgument, also: AlsoOption = None, text: PassageOption = None, guard: GuardOption = None
) -> int:
    """Has base and adapter sit the exam as served, and writes the report."""
    return _redo(run_id, Stage.EVALUATE, exam=ExamWishes(also=tuple(also or ()), text=text, guard=guard))


def promote(run_id: RunArgument) -> int:
    """Promotes a run's adapter if its report says better."""
    return _redo(run_id, Stage.PROMOTE)


def resume(run_id: RunArgument, promote: PromoteOption = True, hand_off: HandOffOption = False) -> int:
    """Goes on with a run at its first unfinished stage; training goes on from its last checkpoint."""
    shop = options.open_shop()._replace(hand_off=hand_off)
    opened = open_run(shop, run_id)
    shop = begin(shop, opened.path, _resume(opened, promote=promote, hand_off=hand_off))
    if is_follower():
        follow(shop, opened)
        return 0
    with opened.exclusive():
        return _finish(shop, opened, last=Stage.PROMOTE if promote else Stage.EVALUATE)


def _overrides(
    recipe: str | None, method: str | None, epochs: float | None, max_steps: int | None, seed: int | None
) -> Overrides:
    return Overrides(recipe=recipe, method=method, epochs=epochs, max_steps=max_steps, seed=seed)


def _resume(of: RunDir, *, promote: bool = True, hand_off: bool = False) -> list[str]:
    return ["resume", of.id, *([] if promote else ["--no-promote"]), *(["--hand-off"] if hand_off else [])]


def _begin(
    domain: str, overrides: Overrides, data: Path | None, reading: Reading, *, last: Stage, hand_off: bool = False
) -> int:
    shop = options.open_shop()._replace(hand_off=hand_off)
    new = pipeline.start_run(shop, domain, overrides, data=data, reading=reading)
    shop = begin(shop, new.path, _resume(new, hand_off=hand_off))
    with new.exclusive():
        pipeline.go_on(shop, new, last=last)
    shop.terminal.say(f"Go on with `preceptor-trainer resume {new.id}`.")
    return 0


def _redo(run_id: str, stage: Stage, *, exam: ExamWishes = ExamWishes()) -> int:  # noqa: B008  # immutable
    shop = options.open_shop()._replace(exam=exam)
    opened = open_run(shop, run_id)
    shop = begin(shop, opened.path, [stage.value, run_id, *exam.words()])
    with opened.exclusive():
        pipeline.redo(shop, opened, stage)
    if stage is Stage.PROMOTE and not opened.result(Stage.PROMOTE, Promoted).promoted:
        return NOT_BETTER
    return 0


def _finish(shop: Workshop, of: RunDir, *, last: Stage) -> int:
    if pipeline.last_stage(of) is not Stage.PROMOTE:
        pipeline.go_on(shop, of, last=last)
        return 0
    was_promoted = of.is_done(Stage.PROMOTE)
    pipeline.go_on(shop, of, last=last)
    if was_promoted:
        shop.terminal.say(f"Run {of.id} was finished before: {of.result(Stage.PROMOTE, Promoted).reason}")
    is_better = of.result(Stage.EVALUATE, Evaluated).verdict is Verdict.BETTER
    return 0 if is_better else NOT_BETTER
