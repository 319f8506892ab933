"""Stage evaluate: base, adapter and whoever rides along sit the exam as served; the report and what lies beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import sha256_file, write_atomic
from preceptor_contracts.report import Guard, Perplexity, Report

from preceptor_trainer.evaluate import perplexity as foretelling
from preceptor_trainer.evaluate.conduct import Held, Paper, Seats, check_served, hold, set_paper
from preceptor_trainer.evaluate.exam import ADAPTER, BASE, Sheet, examine
from preceptor_trainer.evaluate.guard import GuardGrader, guard_file, judge_guard, read_guard
from preceptor_trainer.evaluate.patience import Patience
from preceptor_trainer.evaluate.rendering import PLOT, report_markdown, report_sentences, report_table
from preceptor_trainer.evaluate.reporting import Circumstances, keep_report, make_report
from preceptor_trainer.evaluate.sitting import Sitting
from preceptor_trainer.gateway import GatewayFailure
from preceptor_trainer.prepare.dataset import read_exam
from preceptor_trainer.publish import Published
from preceptor_trainer.registry.model_card import keep_card
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Evaluated, Workshop, folder_of
from preceptor_trainer.tokens import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Done(NamedTuple):
    held: Held
    guard: Guard | None
    perplexity: tuple[Perplexity, ...]


def evaluate_run(shop: Workshop, run: RunDir) -> Evaluated:
    """Has a run's exam sat, writes the report, and keeps a copy beside the adapter."""
    settings, folder = shop.settings, folder_of(shop, run)
    questions = read_exam(folder)
    sha = _unchanged_exam(run, folder)
    paper = set_paper(folder, questions, sha, settings)
    adapter = run.result(Stage.PUBLISH, Published).adapter
    served = {BASE: f"{run.spec.domain}:base", ADAPTER: f"{run.spec.domain}:{adapter}"}
    check_served([*served.values(), *shop.exam.also], questions)
    # `base` is both a side of the report and the raw base model's served name.
    everybody = served | {f"also {name}": name for name in shop.exam.also}
    pairs = [(BASE, side) for side in everybody if side != BASE]
    goes_on = was_broken_off(run)
    if not goes_on:
        # At once: should this sitting fail before anybody was asked, the next one must not find old answers.
        for name in ("answers.jsonl", "guard.jsonl"):
            (run.path / name).unlink(missing_ok=True)
    seats = Seats(everybody, run.path, goes_on, pairs)
    tokenizer = _tokenizer_for(shop, run)
    if shop.exam.text is not None and tokenizer is not None:
        foretelling.read_passage(shop.exam.text, tokenizer)  # a bad file is told before anybody is asked
    started = time.monotonic()

    async def sit() -> _Done:
        async with shop.connect(settings) as gateway:
            patience = Patience(gateway, settings.gateway_patience_s, shop.terminal.say, go_on=_go_on(shop, run))
            held = await hold(shop, gateway, patience, paper, seats)
            guard = await _guard(shop, patience, paper, held, served, seats, tokenizer)
            return _Done(held, guard, await _perplexities(shop, patience, served, tokenizer))

    done = asyncio.run(sit())
    report = make_report(
        done.held.sitting,
        Circumstances(
            domain=run.spec.domain,
            run_id=run.id,
            exam_sha=sha,
            seconds=time.monotonic() - started,
            engine=done.held.engine,
            judging=done.held.judging,
            guard=done.guard,
            forgetting_blocks=settings.guard == "block",
            perplexity=done.perplexity,
        ),
    )
    name = _write(shop, run, report, adapter)
    return Evaluated(report=name, verdict=report.verdict, reason=report.reason)


def was_broken_off(run: RunDir) -> bool:
    """Tells whether the sitting before this one did not end, so that its answers count."""
    earlier = [event.event for event in run.events(Stage.EVALUATE)][:-1]
    return bool(earlier) and earlier[-1] != "done"


def _unchanged_exam(run: RunDir, folder: DomainFolder) -> str:
    sha = sha256_file(folder.exam)
    if sha != run.spec.exam_sha:
        raise InvalidInput(
            f"{folder.exam} was changed after run {run.id!r} was prepared, so nothing says that its questions were not "
            "trained on.",
            code="exam_changed",
            hint=f"Restore it, or start a new run: preceptor-trainer run {run.spec.domain}",
        )
    return sha


def _go_on(shop: Workshop, run: RunDir) -> str:
    return f"Answers so far are kept. Go on with `preceptor-trainer {shop.way_on(run)}`."


def _tokenizer_for(shop: Workshop, run: RunDir) -> PreTrainedTokenizerBase | None:
    is_needed = _asks_guard(shop) or shop.exam.text is not None
    return load_tokenizer(run.spec.base_source) if is_needed else None


def _asks_guard(shop: Workshop) -> bool:
    return shop.settings.guard != "off" if shop.exam.guard is None else shop.exam.guard


async def _guard(
    shop: Workshop,
    patience: Patience,
    paper: Paper,
    held: Held,
    served: Mapping[str, str],
    seats: Seats,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Guard | None:
    if not _asks_guard(shop) or tokenizer is None:
        return None
    questions, sha = read_guard(), sha256_file(guard_file())
    basis = paper.basis(held.engine, shop.settings)._replace(files=(sha,))
    try:
        with shop.terminal.progress("guard", len(served) * len(questions)) as tick:
            rows = await examine(
                patience,
                GuardGrader(tokenizer),
                questions,
                served,
                Sheet(seats.path / "guard.jsonl", basis, seats.goes_on),
                concurrency=shop.settings.concurrency,
                tick=tick,
            )
    except GatewayFailure as error:
        # They inform; an engine that scores no prompts shall not cost the exam that was just sat.
        if shop.settings.guard == "block":
            raise
        shop.terminal.say(f"The general questions could not be asked: {error.message}")
        return None
    return judge_guard(Sitting(tuple(rows)), sha)


async def _perplexities(
    shop: Workshop, patience: Patience, served: Mapping[str, str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Perplexity, ...]:
    if shop.exam.text is None or tokenizer is None:
        return ()
    passage = foretelling.read_passage(shop.exam.text, tokenizer)
    found = []
    for name in served.values():
        cuts = foretelling.windows(len(passage.ids), foretelling.WINDOW, foretelling.STRIDE)
        with shop.terminal.progress(f"perplexity of {name}", len(cuts)) as tick:
            found.append(
                await foretelling.measure(
                    patience,
                    name,
                    passage,
                    window=foretelling.WINDOW,
                    stride=foretelling.STRIDE,
                    concurrency=shop.settings.concurrency,
                    tick=tick,
                )
            )
    return tuple(found)


def _write(shop: Workshop, run: RunDir, report: Report, adapter: str) -> str:
    if report.calibration:
        from preceptor_trainer.evaluate.reliability import write_plot

        write_plot(run.path / PLOT, report.calibration)
    text = report.model_dump_json(indent=2) + "\n"
    write_atomic(run.path / "report.json", text)
    write_atomic(run.path / "report.md", report_markdown(report))
    name = keep_report(shop.settings.adapters_dir / adapter, f"{report.exam_sha[:12]}-{run.id}", text)
    keep_card(shop.settings, adapter)
    shop.terminal.show(report_table(report))
    for sentence in report_sentences(report):
        shop.terminal.say(sentence)
    return name
