"""One grader a kind of question: how it is asked, and when an answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.records import McqQuestion, Question, SqlQuestion

from preceptor_trainer.evaluate.sql_sandbox import Refusal, Rows, SqlSandbox, clean_query, is_ordered, same_rows
from preceptor_trainer.gateway import Gateway


class Graded(Frozen):
    """An answer and what it is worth."""

    answer: str
    expected: str
    correct: bool
    reason: str = ""
    """Why it is wrong; empty where it is right."""
    probabilities: tuple[float, ...] | None = None
    """By option; multiple choice only."""
    answer_index: int | None = None
    """0-based index of the right option; multiple choice only."""
    off_option_mass: float | None = None
    scoring: Scoring | None = None


class Grader(Protocol):
    """Asks one side one question and grades the answer."""

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `served` through the gateway."""


class McqGrader:
    """Right is the option that the answer key names."""

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/submit_mcq`."""
        if not isinstance(question, McqQuestion):
            raise TypeError(f"{question.id!r} is no multiple-choice question")
        given = await gateway.answer_mcq(served, question)
        expected = question.labels[question.answer]
        correct = given.answer == expected
        return Graded(
            answer=given.answer,
            expected=expected,
            correct=correct,
            reason="" if correct else f"chose {given.choice!r}",
            probabilities=tuple(given.probabilities.get(label, 0.0) for label in question.labels),
            answer_index=question.answer,
            off_option_mass=given.off_option_mass,
            scoring=given.scoring,
        )


class SqlGrader:
    """Right is a query that returns what the expected one returns.

    Args:
        sandbox: Holds the domain's database.
        questions: The exam; its own queries are run first.
        max_tokens: Limit on an answer.

    Raises:
        InvalidInput: An expected query does not run: the exam is broken.
    """

    def __init__(self, sandbox: SqlSandbox, questions: Sequence[Question], *, max_tokens: int) -> None:
        self._sandbox = sandbox
        self._max_tokens = max_tokens
        self._expected: dict[str, Rows] = {}
        for question in questions:
            if isinstance(question, SqlQuestion):
                rows = sandbox.run(question.query)
                if isinstance(rows, Refusal):
                    raise InvalidInput(
                        f"Exam question {question.id!r}: its own query {question.query!r} fails, {rows.reason}.",
                        hint="Mend the query in exam.jsonl.",
                    )
                self._expected[question.id] = rows

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/v1/chat/completions`."""
        if not isinstance(question, SqlQuestion):
            raise TypeError(f"{question.id!r} is no SQL question")
        return self.grade(question, await gateway.chat(served, question.question, max_tokens=self._max_tokens))

    def grade(self, question: SqlQuestion, answer: str) -> Graded:
        """Executes an answer and compares what it returns."""
        reason = self._fault(question, clean_query(answer))
        return Graded(answer=answer, expected=question.query, correct=not reason, reason=reason)

    def _fault(self, question: SqlQuestion, query: str) -> str:
        if not query:
            return "the answer holds no query"
        given = self._sandbox.run(query)
        if isinstance(given, Refusal):
            return given.reason
        expected = self._expected[question.id]
        if expected.columns != given.columns:
            return f"it returns {given.columns} column(s), not {expected.columns}"
        if not same_rows(expected, given, ordered=is_ordered(question.query)):
            return "it returns other rows"
        return ""


def grader_for(folder: DomainFolder, questions: Sequence[Question]) -> Grader:
    """Makes the grader that a domain names."""
    if folder.domain.grader == "mcq":
        return McqGrader()
    return SqlGrader(SqlSandbox(folder.database), questions, max_tokens=folder.domain.max_answer_tokens)
