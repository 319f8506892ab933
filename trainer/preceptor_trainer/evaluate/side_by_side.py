"""Exams without a run: served names side by side on an exam, or on a text whose perplexity is measured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from preceptor_contracts.base_models import base_model_source
from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.files import sha256_file, write_atomic
from preceptor_contracts.messages import Message
from preceptor_contracts.prompts import render_chat
from preceptor_contracts.report import Perplexity
from rich.table import Table

from preceptor_trainer.evaluate.conduct import Held, Seats, check_served, hold, set_paper
from preceptor_trainer.evaluate.patience import Patience, require_served
from preceptor_trainer.evaluate.perplexity import check_window, measure, read_passage, windows
from preceptor_trainer.evaluate.rendering import PLOT
from preceptor_trainer.evaluate.standings import About, Standings, make_standings, standings_markdown, standings_tables
from preceptor_trainer.prepare.dataset import read_exam
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer, prompt_ids

_COMPARED_CHARACTERS = 400


def sit_side_by_side(
    shop: Workshop, folder: DomainFolder, served: Sequence[str], *, exam: Path, out: Path
) -> Standings:
    """Has served names sit an exam, and writes answers and standings into a folder of their own.

    Args:
        shop: Settings, terminal, connections, and the command that goes on.
        folder: The domain's.
        served: Whom to ask; the first is the reference for questions that a judge grades.
        exam: A JSONL file of questions.
        out: Folder to write in.

    Raises:
        InvalidInput: The exam or a served name is wrong, or `out` holds a finished exam.
        PreceptorError: The gateway stayed away; what was answered is in `out`.
    """
    settings = shop.settings
    questions = read_exam(folder, exam)
    check_served(served, questions)
    paper = set_paper(folder, questions, sha256_file(exam), settings)
    if (out / "standings.json").exists():
        raise InvalidInput(f"{out} holds a finished exam.", hint="Name another folder with --out, or none.")
    _make_folder(out)
    go_on = f"Answers so far are kept. Go on with `preceptor-trainer {shop.go_on}`."
    seats = Seats({name: name for name in served}, out, True, list(itertools.combinations(served, 2)))
    started = time.monotonic()

    async def sit() -> Held:
        async with shop.connect(settings) as gateway:
            patience = Patience(gateway, settings.gateway_patience_s, shop.terminal.say, go_on=go_on)
            return await hold(shop, gateway, patience, paper, seats)

    held = asyncio.run(sit())
    about = About(folder.domain.name, exam.name, paper.sha, time.monotonic() - started, held.engine, held.judging)
    standings = make_standings(held.sitting, about)
    _write(out, standings)
    for table in standings_tables(standings):
        shop.terminal.show(table)
    shop.terminal.say(standings.reading)
    shop.terminal.say(f"Answers and standings are in {out}.")
    return standings


def foretell(
    shop: Workshop, folder: DomainFolder, served: Sequence[str], text: Path, *, window: int, stride: int
) -> list[Perplexity]:
    """Measures the perplexity of served names on a text, without the domain's prompt.

    Raises:
        InvalidInput: The text, the window or a served name is wrong.
        PreceptorError: Trainer and engine do not make the same tokens, or the gateway stayed away.
    """
    settings = shop.settings
    check_served(served, ())
    check_window(window, stride)
    tokenizer = load_tokenizer(base_model_source(settings.base_model, settings.base_models_dir))
    passage = read_passage(text, tokenizer)
    cuts = windows(len(passage.ids), window, stride)
    beginning = (Message(role="user", content=text.read_text(encoding="utf-8-sig")[:_COMPARED_CHARACTERS]),)
    ours = prompt_ids(tokenizer, render_chat(folder.domain, beginning))

    async def ask() -> list[Perplexity]:
        async with shop.connect(settings) as gateway:
            patience = Patience(gateway, settings.gateway_patience_s, shop.terminal.say, go_on="Then ask for it again.")
            await patience.health()
            await require_served(patience, list(served))
            theirs = await gateway.render_messages(folder.domain.name, beginning)
            if list(theirs.token_ids) != ours:
                raise PreceptorError(
                    "Engine and trainer tokenise the text in different ways.",
                    code="tokens_differ",
                    hint="Make sure that both use the same BASE_MODEL and domains.",
                )
            found = []
            for name in served:
                with shop.terminal.progress(name, len(cuts)) as tick:
                    found.append(
                        await measure(
                            patience,
                            name,
                            passage,
                            window=window,
                            stride=stride,
                            concurrency=settings.concurrency,
                            tick=tick,
                        )
                    )
            return found

    measured = asyncio.run(ask())
    shop.terminal.show(_perplexity_table(measured))
    return measured


def _write(path: Path, standings: Standings) -> None:
    calibrations = [entry.calibration for entry in standings.entries if entry.calibration is not None]
    if calibrations:
        from preceptor_trainer.evaluate.reliability import write_plot

        write_plot(path / PLOT, calibrations)
    write_atomic(path / "standings.md", standings_markdown(standings))
    write_atomic(path / "standings.json", standings.model_dump_json(indent=2) + "\n")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be a folder for answers: {error.strerror}.", hint="Name another with --out."
        ) from error


def _perplexity_table(measured: Sequence[Perplexity]) -> Table:
    first = measured[0]
    title = f"Perplexity on {first.text}: {first.tokens:,} tokens, window {first.window}, stride {first.stride}"
    table = Table(title=title, title_justify="left")
    for heading in ("served name", "a token", "bits a byte"):
        table.add_column(heading, justify="right" if table.columns else "left", overflow="fold")
    for item in measured:
        table.add_row(item.served, f"{item.per_token:.3f}", f"{item.bits_per_byte:.4f}")
    return table
