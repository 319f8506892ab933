"""`preceptor-trainer`: the whole story in one command, and each stage as its own.

Exit codes: 0 promoted or stage done, 1 broken, 2 bad input, 3 not better than the base model.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from preceptor_contracts.errors import InvalidInput, PreceptorError
from typer.exceptions import TyperException

from preceptor_trainer.commands import adapters, exams, export, generate, planning, runs
from preceptor_trainer.commands.options import BAD_INPUT, BROKEN, busy_with
from preceptor_trainer.quiet import silence_libraries
from preceptor_trainer.ranks import is_follower, rank

_INTERRUPTED = 130
"""What Typer 0.29 makes of Ctrl-C, in place of letting it through."""

app = typer.Typer(
    name="preceptor-trainer",
    help="Turns a domain's records into an adapter that measurably beats its base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (
    *(runs.run, runs.prepare, planning.plan, runs.train, runs.publish, runs.evaluate, runs.promote, runs.resume),
    *(generate.generate, planning.recipes, exams.exam, exams.compare, exams.perplexity),
    *(export.merge, export.export),
):
    app.command()(command)
app.add_typer(adapters.app, name="adapters")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and turns every failure into a sentence and an exit code."""
    silence_libraries()
    try:
        code = int(app(args=None if argv is None else list(argv), standalone_mode=False) or 0)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except PreceptorError as error:
        _complain(error.message, error.hint)
        return BAD_INPUT if isinstance(error, InvalidInput) else BROKEN
    except TyperException as error:
        # Typer 0.29 keeps the class that names the option private; its method is there nevertheless.
        tell: Callable[[], str] = getattr(error, "format_message", error.__str__)
        _complain(tell(), "See `preceptor-trainer --help`.")
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        hint = f"Go on with `preceptor-trainer {busy_with[-1].go_on}`." if busy_with else ""
        _complain("Stopped.", hint)
        return BROKEN
    except Exception as error:
        _complain(f"{type(error).__name__}: {error}", _keep_traceback())
        return BROKEN


def _complain(message: str, hint: str) -> None:
    sys.stderr.write(f"{message}\n" + (f"{hint}\n" if hint else ""))


def _keep_traceback() -> str:
    """Writes the traceback into the run, where there is one, and says where."""
    text = traceback.format_exc()
    name = f"error-{rank()}.txt" if is_follower() else "error.txt"
    path = busy_with[-1].path / name if busy_with else Path("preceptor-trainer-error.txt")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        return text
    return f"This is a bug; its traceback is in {path}."
