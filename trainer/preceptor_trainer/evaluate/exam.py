"""Has both sides sit an exam through the gateway, and keeps every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.records import Question

from preceptor_trainer.concurrently import each
from preceptor_trainer.evaluate.graders import Graded, Grader
from preceptor_trainer.gateway import Gateway

SideName = Literal["base", "adapter"]


class AnswerRow(Frozen):
    """One line of `answers.jsonl`."""

    question: str
    side: SideName
    served: str
    group: str
    topic: str
    seconds: float
    """From the request to the answer."""
    graded: Graded


async def examine(
    gateway: Gateway,
    grader: Grader,
    questions: Sequence[Question],
    served: dict[SideName, str],
    answers: Path,
    *,
    concurrency: int,
    tick: Callable[[int], None],
) -> list[AnswerRow]:
    """Asks every question to both sides.

    Args:
        gateway: Open.
        grader: Asks and grades.
        questions: The exam.
        served: Served name of each side.
        answers: Gets a line per answer as it comes in.
        concurrency: Questions asked at once.
        tick: Told how many answers are in.

    Returns:
        The rows, base side first, in the exam's order.

    Raises:
        PreceptorError: A question could not be asked, or the two sides were scored in different ways.
    """
    done = 0

    with answers.open("w", encoding="utf-8") as stream:

        async def ask(seat: tuple[SideName, Question]) -> AnswerRow:
            nonlocal done
            side, question = seat
            started = time.monotonic()
            graded = await grader.ask(gateway, served[side], question)
            row = AnswerRow(
                question=question.id,
                side=side,
                served=served[side],
                group=question.group,
                topic=question.topic,
                seconds=round(time.monotonic() - started, 3),
                graded=graded,
            )
            stream.write(row.model_dump_json() + "\n")
            stream.flush()
            done += 1
            tick(done)
            return row

        rows = await each([(side, question) for side in served for question in questions], ask, limit=concurrency)
    _refuse_mixed_scoring(rows)
    return rows


def _refuse_mixed_scoring(rows: Sequence[AnswerRow]) -> None:
    scorings = sorted({str(row.graded.scoring) for row in rows})
    if len(scorings) > 1:
        raise PreceptorError(
            f"Answers were scored in different ways: {', '.join(scorings)}; their accuracies cannot be compared.",
            code="scoring_differs",
            hint="Train the adapter again under the domain's present scoring.",
        )
