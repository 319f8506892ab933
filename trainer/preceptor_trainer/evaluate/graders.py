"""One grader a kind of question: how it is asked, and when an answer is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.records import (
    ExactQuestion,
    JudgeQuestion,
    KeypointsQuestion,
    McqQuestion,
    Question,
    SqlQuestion,
)

from preceptor_trainer.evaluate.sql_sandbox import Refusal, Rows, SqlSandbox, clean_query, is_ordered, same_rows
from preceptor_trainer.evaluate.wording import same_words, says, words
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


class ExactGrader:
    """Right is the expected answer or one that is accepted, but for case, white space and a last full stop.

    Args:
        max_tokens: Limit on an answer.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/v1/chat/completions`."""
        if not isinstance(question, ExactQuestion):
            raise TypeError(f"{question.id!r} is no question with an exact answer")
        return grade_exact(question, await gateway.chat(served, question.question, max_tokens=self._max_tokens))


def grade_exact(question: ExactQuestion, answer: str) -> Graded:
    """Compares an answer with those that are right."""
    correct = any(same_words(expected, answer) for expected in (question.answer, *question.accept))
    reason = "" if correct else "it is another answer"
    return Graded(answer=answer, expected=question.answer, correct=correct, reason=reason)


class KeypointsGrader:
    """Right is an answer that says every point, in any of its wordings, and nothing of what is forbidden.

    Args:
        max_tokens: Limit on an answer.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/v1/chat/completions`."""
        if not isinstance(question, KeypointsQuestion):
            raise TypeError(f"{question.id!r} is no question with key points")
        return grade_keypoints(question, await gateway.chat(served, question.question, max_tokens=self._max_tokens))


def grade_keypoints(question: KeypointsQuestion, answer: str) -> Graded:
    """Looks for every point and for what is forbidden, by words in a row."""
    said = words(answer)
    missing = [point.any_of[0] for point in question.points if not any(says(said, words(one)) for one in point.any_of)]
    wrong = [one for one in question.forbidden if says(said, words(one))]
    faults = [f"it does not say {one!r}" for one in missing] + [f"it says {one!r}" for one in wrong]
    expected = "; ".join(point.any_of[0] for point in question.points)
    return Graded(answer=answer, expected=expected, correct=not faults, reason="; ".join(faults))


class JudgeGrader:
    """Only asks: a free answer is worth something beside another one, see `judge`.

    Args:
        max_tokens: Limit on an answer.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks `/v1/chat/completions`."""
        if not isinstance(question, JudgeQuestion):
            raise TypeError(f"{question.id!r} is no question for a judge")
        answer = await gateway.chat(served, question.question, max_tokens=self._max_tokens)
        return Graded(answer=answer, expected=question.reference, correct=False, reason="not compared yet")


class MixedGrader:
    """Hands every question to the grader of its kind.

    Args:
        by_kind: Grader of each kind in the exam.
    """

    def __init__(self, by_kind: Mapping[str, Grader]) -> None:
        self._by_kind = by_kind

    async def ask(self, gateway: Gateway, served: str, question: Question) -> Graded:
        """Asks as the question's kind does."""
        return await self._by_kind[question.kind].ask(gateway, served, question)


def grader_for(folder: DomainFolder, questions: Sequence[Question]) -> Grader:
    """Makes the grader for an exam's questions, of one kind or several.

    Raises:
        InvalidInput: The domain's database or an expected query is broken.
    """
    limit = folder.domain.max_answer_tokens
    kinds = {question.kind for question in questions}
    graders: dict[str, Grader] = {
        "mcq": McqGrader(),
        "exact": ExactGrader(max_tokens=limit),
        "keypoints": KeypointsGrader(max_tokens=limit),
        "judge": JudgeGrader(max_tokens=limit),
    }
    if "sql" in kinds:
        graders["sql"] = SqlGrader(SqlSandbox(folder.database), questions, max_tokens=limit)
    return MixedGrader(graders)
