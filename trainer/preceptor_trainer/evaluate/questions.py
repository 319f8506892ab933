"""What an exam's questions must have before anybody is asked: checked when the exam is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.records import KeypointsQuestion, McqQuestion, Question, SqlQuestion, asked_text

from preceptor_trainer.evaluate.wording import says, words

_SHOWN = 5


def check_questions(domain: Domain, questions: Sequence[Question], path: Path) -> None:
    """Refuses questions that the domain cannot ask, or that no answer could get right.

    Raises:
        InvalidInput: It names the first few questions, each with what is wrong.
    """
    faults = [f"question {question.id!r} {fault}" for question in questions for fault in _faults(domain, question)]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InvalidInput(
            f"{path}: {'; '.join(faults[:_SHOWN])}{more}.",
            code="exam_invalid",
            hint=f"Mend {path.name} or domain.yaml and start again; nobody was asked anything.",
        )


def _faults(domain: Domain, question: Question) -> Iterator[str]:
    if domain.grader not in ("mixed", question.kind):
        yield f"is of kind {question.kind!r}, but the domain's grader is {domain.grader!r}, not 'mixed'"
    if isinstance(question, McqQuestion) and domain.mcq is None:
        yield "is of kind 'mcq', but the domain has no `mcq` layout"
    if isinstance(question, SqlQuestion) and domain.database is None:
        yield "is of kind 'sql', but the domain has no `database`"
    if isinstance(question, KeypointsQuestion):
        yield from _faults_of_keypoints(question)
    if "\x00" in asked_text(question):
        yield "holds a NUL character"


def _faults_of_keypoints(question: KeypointsQuestion) -> Iterator[str]:
    wordings = [wording for point in question.points for wording in point.any_of]
    for wording in (*wordings, *question.forbidden):
        if not words(wording):
            yield f"has the wording {wording!r}, which holds no word"
    for point in question.points:
        unusable = [one for one in point.any_of if any(says(words(one), words(bad)) for bad in question.forbidden)]
        if len(unusable) == len(point.any_of):
            yield f"forbids what it asks for: {unusable[0]!r} holds a forbidden wording"
