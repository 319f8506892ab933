"""The six stages. Each reads what earlier ones left in the run directory and returns what it found.

Modules that import torch are imported inside the stages that need them: `--help` and a malformed line must not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.files import sha256_file, write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import ParityCertificate
from preceptor_contracts.report import Verdict

from preceptor_trainer.gateway import Gateway
from preceptor_trainer.hardware import detect_hardware, matrix_rate
from preceptor_trainer.prepare import dataset as preparing
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.terminal import Terminal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor_trainer.publish import Proofs


class Workshop(NamedTuple):
    """What every stage works with."""

    settings: TrainerSettings
    terminal: Terminal
    connect: Callable[[TrainerSettings], Gateway] = Gateway.of
    """Opens the gateway; tests put a fake one here."""


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


def plan(shop: Workshop, run: RunDir) -> Frozen:
    """Forecasts the training and refuses one that does not fit."""
    from preceptor_trainer.plan.forecast import load_config, make_plan, plan_table

    hardware = detect_hardware()
    if hardware.device != run.spec.device:
        raise InvalidInput(
            f"Run {run.id!r} was prepared for {run.spec.device!r}, but this machine has {hardware.device!r}.",
            hint=f"Start a new run: preceptor-trainer run {run.spec.domain}",
        )
    plan = make_plan(
        load_config(run.spec.base_source),
        run.spec.recipe,
        run.result(Stage.PREPARE, preparing.Prepared),
        hardware,
        matrix_flops=matrix_rate(hardware.device),
    )
    shop.terminal.show(plan_table(plan, run.spec.recipe, hardware, run.spec.base_model.id))
    return plan


def train(shop: Workshop, run: RunDir) -> Frozen:
    """Trains, or goes on from the last checkpoint."""
    from preceptor_trainer.plan.forecast import Plan
    from preceptor_trainer.train import training

    dataset, tokenizer = _dataset(shop, run)
    trained = training.train(run, dataset, tokenizer, run.result(Stage.PLAN, Plan), shop.terminal)
    metrics = trained.metrics
    shop.terminal.say(
        f"Trained {metrics.tokens:,} tokens in {metrics.seconds:.0f} s: {metrics.tokens_per_second:.0f} tokens/s "
        f"({trained.computed_share:.0%} computed, the rest shared in a batch), {trained.matrix_share:.0%} of this "
        f"machine's float32 matrix rate of {trained.matrix_flops / 1e9:.0f} GFLOP/s, measured; "
        f"loss {metrics.first_loss:.3f} to {metrics.final_loss:.3f}."
    )
    return trained


def publish(shop: Workshop, run: RunDir) -> Frozen:
    """Proves the adapter servable, writes it, and has the gateway load it. Promotes nothing."""
    from preceptor_trainer import publish as publishing
    from preceptor_trainer.train.training import Trained

    settings, folder = shop.settings, folder_of(shop, run)
    trained = run.result(Stage.TRAIN, Trained)
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


def _prove(shop: Workshop, run: RunDir, folder: DomainFolder) -> Proofs:
    from preceptor_trainer.canary import PROMPTS_TRIED, make_canary
    from preceptor_trainer.parity import RECORDS_COMPARED, certify, exam_sample, record_sample, spread
    from preceptor_trainer.publish import Proofs
    from preceptor_trainer.tokens import label_token_ids

    dataset, tokenizer = _dataset(shop, run)
    samples = [exam_sample(folder.domain, question) for question in preparing.read_exam(folder)]
    samples += [record_sample(folder.domain, record) for record in spread(dataset.records, RECORDS_COMPARED)]

    async def compare() -> ParityCertificate:
        async with shop.connect(shop.settings) as gateway:
            return await certify(gateway, folder.domain, samples, tokenizer, concurrency=shop.settings.concurrency)

    parity = asyncio.run(compare())
    tried = range(0, len(dataset.examples), max(1, len(dataset.examples) // PROMPTS_TRIED))[:PROMPTS_TRIED]
    candidates = [(dataset.examples[at].prompt, dataset.tokenised[at]) for at in tried]
    canary = make_canary(run.spec.base_source, run.adapter, candidates, device=run.spec.device)
    return Proofs(
        parity=parity,
        canary=canary,
        stop_token_ids=(int(tokenizer.eos_token_id),),
        label_token_ids=label_token_ids(tokenizer, dataset.examples[0].prompt),
    )


def evaluate(shop: Workshop, run: RunDir) -> Evaluated:
    """Has base and adapter sit the exam as served, and writes the report."""
    from preceptor_trainer.evaluate.exam import AnswerRow, examine
    from preceptor_trainer.evaluate.graders import grader_for
    from preceptor_trainer.evaluate.reporting import (
        Circumstances,
        keep_report,
        make_report,
        report_markdown,
        report_table,
    )
    from preceptor_trainer.publish import Published

    settings, folder = shop.settings, folder_of(shop, run)
    exam_sha = sha256_file(folder.exam)
    if exam_sha != run.spec.exam_sha:
        raise InvalidInput(
            f"{folder.exam} was changed after run {run.id!r} was prepared, so nothing says that its questions were not "
            "trained on.",
            code="exam_changed",
            hint=f"Restore it, or start a new run: preceptor-trainer run {run.spec.domain}",
        )
    questions = preparing.read_exam(folder)
    grader = grader_for(folder, questions)
    adapter = run.result(Stage.PUBLISH, Published).adapter
    started = time.monotonic()

    async def sit() -> tuple[list[AnswerRow], str]:
        async with shop.connect(settings) as gateway:
            engine = (await gateway.health()).engine
            with shop.terminal.progress("exam", 2 * len(questions)) as tick:
                rows = await examine(
                    gateway,
                    grader,
                    questions,
                    {"base": f"{run.spec.domain}:base", "adapter": f"{run.spec.domain}:{adapter}"},
                    run.path / "answers.jsonl",
                    concurrency=settings.concurrency,
                    tick=tick,
                )
            return rows, engine

    rows, engine = asyncio.run(sit())
    report = make_report(rows, Circumstances(run.spec.domain, run.id, exam_sha, time.monotonic() - started, engine))
    text = report.model_dump_json(indent=2) + "\n"
    write_atomic(run.path / "report.json", text)
    write_atomic(run.path / "report.md", report_markdown(report))
    name = keep_report(settings.adapters_dir / adapter, f"{exam_sha[:12]}-{run.id}", text)
    shop.terminal.show(report_table(report))
    shop.terminal.say(report.reason)
    return Evaluated(report=name, verdict=report.verdict, reason=report.reason)


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
