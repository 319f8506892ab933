"""Arguments and options that several commands share, and what every command begins with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console

from preceptor_trainer.ranks import is_follower
from preceptor_trainer.runs import RunDir
from preceptor_trainer.settings import load_settings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal

BROKEN, BAD_INPUT, NOT_BETTER = 1, 2, 3
"""Exit codes, beside 0."""

DomainArgument = Annotated[str, typer.Argument(help="Name of a folder under DOMAINS_DIR.")]
RunArgument = Annotated[str, typer.Argument(help="Name of a folder under RUNS_DIR.")]
RecipeOption = Annotated[str | None, typer.Option(help="Recipe by name, or a .yaml file.")]
MethodOption = Annotated[str | None, typer.Option(help="lora, qlora, lora-8bit or full.")]
EpochsOption = Annotated[float | None, typer.Option(help="Passes over the records.")]
StepsOption = Annotated[int | None, typer.Option("--max-steps", help="End training after so many steps.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Rows to train on in place of the domain's: JSONL, a JSON array, CSV or Parquet.")
]
EncodingOption = Annotated[str | None, typer.Option(help="Of the data, e.g. cp1252; found out for UTF-8 and UTF-16.")]
LeakOption = Annotated[
    bool, typer.Option("--allow-leak", help="Train on records that give exam questions away; the manifest says so.")
]
ContradictionsOption = Annotated[
    bool, typer.Option("--allow-contradictions", help="Train on questions that are answered in two ways.")
]
ValidateOption = Annotated[
    bool, typer.Option("--validate-only", help="Check the data and print the report; make no run.")
]
ReportDirOption = Annotated[
    Path | None, typer.Option(help="With --validate-only: folder for report.json and report.md.")
]
SeedOption = Annotated[int | None, typer.Option(help="Of weights and order.")]
AlsoOption = Annotated[list[str] | None, typer.Option(help="A further served name that sits the exam; repeatable.")]
PassageOption = Annotated[Path | None, typer.Option("--text", help="A UTF-8 text whose perplexity is measured too.")]
GuardOption = Annotated[
    bool | None, typer.Option("--guard/--no-guard", help="Ask general questions too; else as TRAINER_GUARD says.")
]
PromoteOption = Annotated[bool, typer.Option("--yes-promote/--no-promote", help="Promote the adapter if it is better.")]


HandOffOption = Annotated[
    bool, typer.Option("--hand-off", help="Have the engine on this GPU make way for the training, and come back.")
]


class Work(NamedTuple):
    """What this process is at."""

    path: Path
    """Folder of the run or the exam: gets the last-resort error file."""
    go_on: str
    """The command, without the program's name, that goes on with it."""


busy_with: list[Work] = []
"""The newest last, for whoever stops this process."""


def open_shop() -> Workshop:
    """Reads the settings and opens the terminal."""
    return Workshop(load_settings(), Terminal(Console(quiet=True) if is_follower() else None))


def open_run(shop: Workshop, run_id: str) -> RunDir:
    """Opens a run by id."""
    return RunDir.open(shop.settings.runs_dir, run_id, writes=not is_follower())


def begin(shop: Workshop, path: Path, go_on: Sequence[str]) -> Workshop:
    """Remembers what this process is at, and returns a workshop whose stages can say how to go on with it.

    Args:
        shop: Settings and terminal.
        path: Folder of the run or the exam.
        go_on: Words of the command that goes on with it.
    """
    work = Work(path, shlex.join(go_on))
    busy_with.append(work)
    return shop._replace(go_on=work.go_on)
