"""Has any number of served names sit an exam through the gateway, and keeps every answer as it comes in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import Sha256, canonical_json, sha256_bytes, write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.records import Question
from preceptor_contracts.served_names import parse_served_name
from pydantic import ValidationError

from preceptor_trainer.concurrently import each
from preceptor_trainer.evaluate.graders import Graded, Grader
from preceptor_trainer.evaluate.patience import Patience

BASE, ADAPTER = "base", "adapter"
"""The two sides of a run's report; any further side is called by its served name."""


class AnswerRow(Frozen):
    """One line of `answers.jsonl`."""

    question: str
    side: str
    """`base`, `adapter`, or a further served name."""
    served: str
    group: str
    topic: str
    seconds: float
    """From the request to the answer."""
    basis: str = ""
    """Hash of all that the answer hangs on; it is used again only under the same."""
    graded: Graded


class Basis(NamedTuple):
    """What an answer hangs on, beside the served name."""

    files: tuple[Sha256, ...]
    """Hashes of the exam and of what it is graded by."""
    domain: Domain
    engine: str
    base_model: str

    def of(self, served: str) -> str:
        """Hashes it for one served name; empty for an alias, which may point elsewhere tomorrow."""
        name = parse_served_name(served)
        if not name.is_base and name.adapter is None:
            return ""
        parts = [self.files, self.domain.model_dump(mode="json"), self.engine, self.base_model, served]
        return sha256_bytes(canonical_json(parts).encode())


class Sheet(NamedTuple):
    """Where answers go."""

    path: Path
    """`answers.jsonl`."""
    basis: Basis
    goes_on: bool
    """Keep what is in from a sitting that was broken off; else begin an empty sheet."""


async def examine(
    patience: Patience,
    grader: Grader,
    questions: Sequence[Question],
    served: Mapping[str, str],
    sheet: Sheet,
    *,
    concurrency: int,
    tick: Callable[[int], None],
) -> list[AnswerRow]:
    """Asks every question to every side that has not answered it yet.

    Args:
        patience: Holds the gateway.
        grader: Asks and grades.
        questions: The exam.
        served: Served name of each side.
        sheet: Gets a line an answer.
        concurrency: Questions asked at once.
        tick: Told how many answers are in.

    Returns:
        The rows, side by side, in the exam's order.

    Raises:
        PreceptorError: A question could not be asked, or the sides were scored in different ways.
    """
    bases = {side: sheet.basis.of(name) for side, name in served.items()}
    kept = _kept(sheet.path, bases, {question.id for question in questions}) if sheet.goes_on else {}
    write_atomic(sheet.path, "".join(_line(row) for row in kept.values()))
    done = len(kept)
    tick(done)
    with sheet.path.open("a", encoding="utf-8") as stream:

        async def ask(seat: tuple[str, Question]) -> AnswerRow:
            nonlocal done
            side, question = seat
            if (row := kept.get((side, question.id))) is not None:
                return row
            name, started = served[side], time.monotonic()
            graded = await patience.until_answered(name, lambda: grader.ask(patience.gateway, name, question))
            row = AnswerRow(
                question=question.id,
                side=side,
                served=name,
                group=question.group,
                topic=question.topic,
                seconds=round(time.monotonic() - started, 3),
                basis=bases[side],
                graded=graded,
            )
            stream.write(_line(row))
            stream.flush()
            done += 1
            tick(done)
            return row

        rows = await each([(side, question) for side in served for question in questions], ask, limit=concurrency)
    _refuse_mixed_scoring(rows)
    return rows


def _line(row: AnswerRow) -> str:
    return row.model_dump_json() + "\n"


def _kept(path: Path, bases: Mapping[str, str], questions: set[str]) -> dict[tuple[str, str], AnswerRow]:
    """Reads what is in already; half a line, which a kill leaves, is no answer."""
    kept: dict[tuple[str, str], AnswerRow] = {}
    if not path.is_file():
        return kept
    for line in path.read_bytes().split(b"\n"):
        try:
            row = AnswerRow.model_validate_json(line)
        except ValidationError:
            continue
        if row.basis and row.basis == bases.get(row.side) and row.question in questions:
            kept[row.side, row.question] = row
    return kept


def _refuse_mixed_scoring(rows: Sequence[AnswerRow]) -> None:
    scorings = sorted({row.graded.scoring.value for row in rows if row.graded.scoring is not None})
    if len(scorings) > 1:
        raise PreceptorError(
            f"Answers were scored in different ways: {', '.join(scorings)}; their accuracies cannot be compared.",
            code="scoring_differs",
            hint="Train the adapter again under the domain's present scoring.",
        )
