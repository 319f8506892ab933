"""The six stages. Each reads what earlier ones left in the run directory and returns what it found.

Modules that import torch are imported inside the stages that need them: `--help` and a malformed line must not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import ParityCertificate
from preceptor_contracts.report import Verdict

from preceptor_trainer.disk import full_disk_told
from preceptor_trainer.evaluate.judge import Judge
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.hardware import detect_hardware, matrix_rate
from preceptor_trainer.prepare import dataset as preparing
from preceptor_trainer.ranks import is_sharded, ranks
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.terminal import Terminal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor_trainer.publish import Proofs
    from preceptor_trainer.train.training import Trained

_FOLLOW_S = 600
"""Seconds that the other processes of a training wait for the first to plan it."""


class ExamWishes(NamedTuple):
    """What one command adds to an exam."""

    also: tuple[str, ...] = ()
    """Further served names that sit it."""
    text: Path | None = None
    """A text file whose perplexity is measured."""
    guard: bool | None = None
    """Ask general questions; None leaves it to the settings."""

    def words(self) -> list[str]:
        """The options that say it again."""
        guard = [] if self.guard is None else ["--guard" if self.guard else "--no-guard"]
        also = [word for name in self.also for word in ("--also", name)]
        return [*also, *(["--text", str(self.text)] if self.text else []), *guard]


class Workshop(NamedTuple):
    """What every stage works with."""

    settings: TrainerSettings
    terminal: Terminal
    connect: Callable[[TrainerSettings], Gateway] = Gateway.of
    """Opens the gateway; tests put a fake one here."""
    exam: ExamWishes = ExamWishes()
    judge: Callable[[TrainerSettings], Judge] = Judge.of
    """Opens the judge; tests put a fake one here."""
    hand_off: bool = False
    """The engine on this GPU makes way for the training."""
    go_on: str = ""
    """The command that goes on with what this process does, where `resume` of its run is not the one."""

    def way_on(self, run: RunDir) -> str:
        """The command, without the program's name, that goes on with a run that was broken off."""
        return self.go_on or f"resume {run.id}"


class Evaluated(Frozen):
    """What stage evaluate found; the rest is in `report.json`."""

    report: str
    """File name under the adapter's `reports/`."""
    verdict: Verdict
    reason: str


class Promoted(Frozen):
    """What stage promote did."""

    promoted: bool
    reason: str


def prepare(shop: Workshop, run: RunDir) -> preparing.Prepared:
    """Counts again what `pipeline.start_run` prepared, where a kill came before it could say so."""
    return preparing.Prepared(dataset=run.spec.dataset, lengths=_dataset(shop, run)[0].lengths())


def plan(
    shop: Workshop, run: RunDir, *, in_full: bool = False, probed: bool = False, price_per_hour: float | None = None
) -> Frozen:
    """Forecasts the training and refuses one that does not fit.

    Args:
        shop: Settings and terminal.
        run: Prepared.
        in_full: Whether to show parameters by module and memory by part too.
        probed: Whether to take the time from three real steps; they cost what loading the weights and they cost.
        price_per_hour: Of this machine, in any currency.
    """
    from preceptor_trainer.plan.forecast import Question, load_config, make_plan, refuse_misfit
    from preceptor_trainer.plan.servability import Place
    from preceptor_trainer.plan.tables import plan_view
    from preceptor_trainer.plan.workload import of_dataset

    hardware, spec = detect_hardware(), run.spec
    if hardware.device != spec.device:
        raise InvalidInput(
            f"Run {run.id!r} was prepared for {spec.device!r}, but this machine has {hardware.device!r}.",
            hint=f"Start a new run: preceptor-trainer run {spec.domain}",
        )
    question = Question(
        base_model=spec.base_model.id,
        place=Place(spec.base_model.id, shop.settings.engine_max_lora_rank, hardware.device),
        matrix_flops=matrix_rate(hardware.device),
        price_per_hour=price_per_hour,
        processes=ranks(),
        sharded=is_sharded(),
    )
    dataset, tokenizer = _dataset(shop, run)
    plan = make_plan(load_config(spec.base_source), spec.recipe, of_dataset(dataset, spec.recipe), hardware, question)
    if probed and plan.fits:
        from preceptor_trainer.plan.probe import probe

        plan = plan.timed_by(probe(spec, dataset, tokenizer, checkpointing=plan.gradient_checkpointing))
    shop.terminal.show(plan_view(plan, spec.recipe, hardware, spec.base_model.id, in_full=in_full))
    refuse_misfit(plan, hardware)
    return plan


def train(shop: Workshop, run: RunDir) -> Frozen:
    """Trains, or goes on from the last checkpoint."""
    from preceptor_trainer.plan.forecast import Plan
    from preceptor_trainer.train import training

    dataset, tokenizer = _dataset(shop, run)
    planned = run.result(Stage.PLAN, Plan)
    trained = training.train(run, dataset, tokenizer, planned, shop.terminal, reporters=shop.settings.reporters)
    metrics = trained.metrics
    shop.terminal.say(
        f"Trained {metrics.tokens:,} tokens in {metrics.seconds:.0f} s: {metrics.tokens_per_second:.0f} tokens/s "
        f"({trained.computed_share:.0%} computed, the rest shared in a batch), {trained.matrix_share:.0%} of this "
        f"machine's float32 matrix rate of {trained.matrix_flops / 1e9:.0f} GFLOP/s, measured; "
        f"loss {metrics.first_loss:.3f} to {metrics.final_loss:.3f}."
    )
    if trained.stopped_early:
        shop.terminal.say(
            f"Stopped after {metrics.steps} of {planned.steps} steps: the validation loss no longer fell."
        )
    if trained.validation_loss is not None:
        shop.terminal.say(
            f"Kept the weights of step {trained.weights_step}: validation loss {trained.validation_loss:.3f}."
        )
    return trained


def follow(shop: Workshop, run: RunDir) -> None:
    """Trains beside the first process of `accelerate launch`, which does everything else.

    Raises:
        PreceptorError: The first process does not get as far as the training.
    """
    from preceptor_trainer.plan.forecast import Plan
    from preceptor_trainer.train import training

    end = time.monotonic() + _FOLLOW_S
    while not run.is_done(Stage.PLAN):
        if time.monotonic() > end:
            raise PreceptorError(f"Run {run.id!r} was not planned within {_FOLLOW_S} s.", code="not_planned")
        time.sleep(0.2)
    if not run.is_done(Stage.TRAIN):
        dataset, tokenizer = _dataset(shop, run)
        planned = run.result(Stage.PLAN, Plan)
        with full_disk_told(shop.way_on(run)):
            training.take_part(run, dataset, tokenizer, planned, shop.terminal, reporters=shop.settings.reporters)


def publish(shop: Workshop, run: RunDir) -> Frozen:
    """Proves the adapter servable, writes it, and has the gateway load it. Promotes nothing."""
    from preceptor_trainer import publish as publishing
    from preceptor_trainer.train.training import Trained

    settings, folder = shop.settings, folder_of(shop, run)
    trained = run.result(Stage.TRAIN, Trained)
    if run.spec.recipe.method == "full":
        return _publish_base(shop, run, trained)
    manifest = publishing.find_published(settings.adapters_dir, run)
    if manifest is None:
        proofs = _prove(shop, run, folder)
        manifest = publishing.write_adapter(settings.adapters_dir, run, folder.domain, trained, proofs)
    name = manifest.adapter

    async def register() -> None:
        async with shop.connect(settings) as gateway:
            await publishing.register(gateway, name)

    started = time.monotonic()
    asyncio.run(register())
    seconds = round(time.monotonic() - started, 3)
    shop.terminal.say(
        f"Published {name}: {manifest.parity.samples} prompts have the same token ids in training and serving; "
        f"loaded in {seconds:.1f} s, canary passed."
    )
    return publishing.Published(
        adapter=name,
        parity_samples=manifest.parity.samples,
        canary_separation=manifest.canary.separation,
        load_seconds=seconds,
    )


def _publish_base(shop: Workshop, run: RunDir, trained: Trained) -> Frozen:
    from preceptor_trainer.publish_base import write_base

    published = write_base(shop.settings.base_models_dir, run, trained)
    shop.terminal.say(
        f"Wrote {published.folder}. To serve it, set BASE_MODEL={published.folder} and restart the engine. To examine "
        f"it as served, then: preceptor-trainer exam {run.spec.domain} --served {run.spec.domain}:base"
    )
    return published


def _prove(shop: Workshop, run: RunDir, folder: DomainFolder) -> Proofs:
    from preceptor_trainer.canary import PROMPTS_TRIED, make_canary
    from preceptor_trainer.parity import RECORDS_COMPARED, certify, exam_sample, record_sample, spread
    from preceptor_trainer.plan.forecast import Plan
    from preceptor_trainer.publish import Proofs
    from preceptor_trainer.tokens import label_token_ids
    from preceptor_trainer.train.memory import place_for

    dataset, tokenizer = _dataset(shop, run)
    samples = [exam_sample(folder.domain, question) for question in preparing.read_exam(folder)]
    samples += [record_sample(folder.domain, record) for record in spread(dataset.records, RECORDS_COMPARED)]

    async def compare() -> ParityCertificate:
        async with shop.connect(shop.settings) as gateway:
            return await certify(gateway, folder.domain, samples, tokenizer, concurrency=shop.settings.concurrency)

    parity = asyncio.run(compare())
    tried = range(0, len(dataset.examples), max(1, len(dataset.examples) // PROMPTS_TRIED))[:PROMPTS_TRIED]
    candidates = [(dataset.examples[at].prompt, dataset.tokenised[at]) for at in tried]
    device = place_for(4 * run.result(Stage.PLAN, Plan).base_parameters, run.spec.device)
    canary = make_canary(run.spec.base_source, run.adapter, candidates, device=device)
    return Proofs(
        parity=parity,
        canary=canary,
        stop_token_ids=(int(tokenizer.eos_token_id),),
        label_token_ids=label_token_ids(tokenizer, dataset.examples[0].prompt),
    )


def evaluate(shop: Workshop, run: RunDir) -> Evaluated:
    """Has base and adapter sit the exam as served, and writes the report."""
    from preceptor_trainer.evaluate.stage import evaluate_run

    return evaluate_run(shop, run)


def promote(shop: Workshop, run: RunDir) -> Promoted:
    """Moves the alias where the report says better, and takes away the pin that the exam needed."""
    from preceptor_trainer.publish import Published

    adapter = run.result(Stage.PUBLISH, Published).adapter
    evaluated = run.result(Stage.EVALUATE, Evaluated)
    if evaluated.verdict is not Verdict.BETTER:
        shop.terminal.say(f"Not promoted: {evaluated.reason}")
        _unpin(shop, adapter)
        return Promoted(promoted=False, reason=evaluated.reason)

    async def move() -> None:
        async with shop.connect(shop.settings) as gateway:
            await gateway.promote(run.spec.domain, adapter, evaluated.report)

    asyncio.run(move())
    shop.terminal.say(f"Promoted {adapter}: ask for {run.spec.domain!r}.")
    _unpin(shop, adapter)
    return Promoted(promoted=True, reason=evaluated.reason)


def _unpin(shop: Workshop, adapter: str) -> None:
    """Keeps old versions from being loaded for ever. The verdict stands, whether it can be done or not."""

    async def ask() -> None:
        async with shop.connect(shop.settings) as gateway:
            await gateway.unpin(adapter)

    try:
        asyncio.run(ask())
    except PreceptorError as error:
        shop.terminal.say(f"The pin of {adapter} stays ({error.message}). DELETE /v1/adapters/{adapter}/pin takes it.")


def folder_of(shop: Workshop, run: RunDir) -> DomainFolder:
    """Finds the run's domain and makes sure that it still renders what was trained on."""
    folder = find_domain(shop.settings.domains_dir, run.spec.domain)
    if folder.domain.prompt_sha != run.spec.prompt_sha:
        raise InvalidInput(
            f"The prompts of domain {run.spec.domain!r} changed since run {run.id!r} was made.",
            code="prompt_changed",
            hint=f"Start a new run: preceptor-trainer run {run.spec.domain}",
        )
    return folder


def _dataset(shop: Workshop, run: RunDir) -> tuple[preparing.Dataset, PreTrainedTokenizerBase]:
    from preceptor_trainer.tokens import load_tokenizer

    tokenizer = load_tokenizer(run.spec.base_source)
    domain = folder_of(shop, run).domain
    path = run.path / "dataset.jsonl"
    return preparing.reload(domain, path, tokenizer, expected_sha=run.spec.dataset.sha256), tokenizer
