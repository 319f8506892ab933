"""`preceptor-trainer`: the whole story in one command, and each stage as its own.

Exit codes: 0 promoted or stage done, 1 broken, 2 bad input, 3 not better than the base model.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.report import Verdict
from typer.exceptions import TyperException

from preceptor_trainer import pipeline
from preceptor_trainer.quiet import silence_libraries
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import load_settings
from preceptor_trainer.stages import Evaluated, Promoted, Workshop
from preceptor_trainer.terminal import Terminal

BROKEN, BAD_INPUT, NOT_BETTER = 1, 2, 3

app = typer.Typer(
    name="preceptor-trainer",
    help="Turns a domain's records into an adapter that measurably beats its base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DomainArgument = Annotated[str, typer.Argument(help="Name of a folder under DOMAINS_DIR.")]
RunArgument = Annotated[str, typer.Argument(help="Name of a folder under RUNS_DIR.")]
RecipeOption = Annotated[str | None, typer.Option(help="Recipe by name, or a .yaml file.")]
MethodOption = Annotated[str | None, typer.Option(help="lora or qlora.")]
EpochsOption = Annotated[float | None, typer.Option(help="Passes over the records.")]
StepsOption = Annotated[int | None, typer.Option("--max-steps", help="End training after so many steps.")]
DataOption = Annotated[Path | None, typer.Option(help="JSONL records to train on in place of the domain's.")]
SeedOption = Annotated[int | None, typer.Option(help="Of weights and order.")]
PromoteOption = Annotated[bool, typer.Option("--yes-promote/--no-promote", help="Promote the adapter if it is better.")]

_busy_with: list[RunDir] = []
"""The run that this process works on, for the last-resort error file."""


@app.command()
def run(
    domain: DomainArgument,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    epochs: EpochsOption = None,
    max_steps: StepsOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
    promote: PromoteOption = True,
) -> int:
    """Everything: prepare, plan, train, publish, evaluate, promote if better."""
    shop = _shop()
    shop.settings.admin_key()
    new = _start(shop, domain, _overrides(recipe, method, epochs, max_steps, seed), data)
    with new.exclusive():
        pipeline.check_gateway(shop, new)
        return _finish(shop, new, last=Stage.PROMOTE if promote else Stage.EVALUATE)


@app.command()
def prepare(
    domain: DomainArgument,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    epochs: EpochsOption = None,
    max_steps: StepsOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
) -> int:
    """Checks a domain's records and makes a run of them."""
    return _begin(domain, _overrides(recipe, method, epochs, max_steps, seed), data, last=Stage.PREPARE)


@app.command()
def plan(
    domain: DomainArgument,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    epochs: EpochsOption = None,
    max_steps: StepsOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
) -> int:
    """Prepares, and tells what the training would cost."""
    return _begin(domain, _overrides(recipe, method, epochs, max_steps, seed), data, last=Stage.PLAN)


@app.command()
def train(
    domain: DomainArgument,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    epochs: EpochsOption = None,
    max_steps: StepsOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
) -> int:
    """Prepares, plans and trains; needs no gateway."""
    return _begin(domain, _overrides(recipe, method, epochs, max_steps, seed), data, last=Stage.TRAIN)


@app.command()
def publish(run_id: RunArgument) -> int:
    """Publishes a trained run's adapter, unpromoted, and has the gateway load it."""
    return _redo(run_id, Stage.PUBLISH)


@app.command()
def evaluate(run_id: RunArgument) -> int:
    """Has base and adapter sit the exam as served, and writes the report."""
    return _redo(run_id, Stage.EVALUATE)


@app.command()
def promote(run_id: RunArgument) -> int:
    """Promotes a run's adapter if its report says better."""
    return _redo(run_id, Stage.PROMOTE)


@app.command()
def resume(run_id: RunArgument, promote: PromoteOption = True) -> int:
    """Goes on with a run at its first unfinished stage; training goes on from its last checkpoint."""
    shop = _shop()
    opened = _open(shop, run_id)
    with opened.exclusive():
        return _finish(shop, opened, last=Stage.PROMOTE if promote else Stage.EVALUATE)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and turns every failure into a sentence and an exit code."""
    silence_libraries()
    try:
        return int(app(args=None if argv is None else list(argv), standalone_mode=False) or 0)
    except PreceptorError as error:
        _complain(error.message, error.hint)
        return BAD_INPUT if isinstance(error, InvalidInput) else BROKEN
    except TyperException as error:
        # Typer 0.29 keeps the class that names the option private; its method is there nevertheless.
        tell: Callable[[], str] = getattr(error, "format_message", error.__str__)
        _complain(tell(), "See `preceptor-trainer --help`.")
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        hint = f"Go on with `preceptor-trainer resume {_busy_with[-1].id}`." if _busy_with else ""
        _complain("Stopped.", hint)
        return BROKEN
    except Exception as error:
        _complain(f"{type(error).__name__}: {error}", _keep_traceback())
        return BROKEN


def _shop() -> Workshop:
    return Workshop(load_settings(), Terminal())


def _overrides(
    recipe: str | None, method: str | None, epochs: float | None, max_steps: int | None, seed: int | None
) -> Overrides:
    return Overrides(recipe=recipe, method=method, epochs=epochs, max_steps=max_steps, seed=seed)


def _start(shop: Workshop, domain: str, overrides: Overrides, data: Path | None) -> RunDir:
    new = pipeline.start_run(shop, domain, overrides, data=data)
    _busy_with.append(new)
    return new


def _open(shop: Workshop, run_id: str) -> RunDir:
    opened = RunDir.open(shop.settings.runs_dir, run_id)
    _busy_with.append(opened)
    return opened


def _begin(domain: str, overrides: Overrides, data: Path | None, *, last: Stage) -> int:
    shop = _shop()
    new = _start(shop, domain, overrides, data)
    with new.exclusive():
        pipeline.go_on(shop, new, last=last)
    shop.terminal.say(f"Go on with `preceptor-trainer resume {new.id}`.")
    return 0


def _redo(run_id: str, stage: Stage) -> int:
    shop = _shop()
    opened = _open(shop, run_id)
    with opened.exclusive():
        pipeline.redo(shop, opened, stage)
    if stage is Stage.PROMOTE and not opened.result(Stage.PROMOTE, Promoted).promoted:
        return NOT_BETTER
    return 0


def _finish(shop: Workshop, of: RunDir, *, last: Stage) -> int:
    was_promoted = of.is_done(Stage.PROMOTE)
    pipeline.go_on(shop, of, last=last)
    if was_promoted:
        shop.terminal.say(f"Run {of.id} was finished before: {of.result(Stage.PROMOTE, Promoted).reason}")
    is_better = of.result(Stage.EVALUATE, Evaluated).verdict is Verdict.BETTER
    return 0 if is_better else NOT_BETTER


def _complain(message: str, hint: str) -> None:
    sys.stderr.write(f"{message}\n" + (f"{hint}\n" if hint else ""))


def _keep_traceback() -> str:
    """Writes the traceback into the run, where there is one, and says where."""
    text = traceback.format_exc()
    path = _busy_with[-1].path / "error.txt" if _busy_with else Path("preceptor-trainer-error.txt")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        return text
    return f"This is a bug; its traceback is in {path}."
