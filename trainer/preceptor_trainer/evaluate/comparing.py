"""Pairs of free answers become wins, losses and ties: asked in both orders, kept, and written into the rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import canonical_json, sha256_bytes, write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.records import JudgeQuestion, Question
from preceptor_contracts.report import Judging
from pydantic import ValidationError

from preceptor_trainer.concurrently import each
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.evaluate.judge import PROMPT_SHA, Judge
from preceptor_trainer.evaluate.wording import fold

_UNREADABLE_SHARE = 0.1
"""Above this share of unreadable comparisons the judge is no judge."""


class Outcome(StrEnum):
    """Which of a pair's answers is better."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


class Judgement(Frozen):
    """One line of `judgements.jsonl`: one pair of answers, asked about in both orders."""

    question: str
    first: str
    """Side."""
    second: str
    """Side."""
    outcome: Outcome
    agreed: bool
    """Both orders gave the same winner; true also for answers that are the same."""
    readable: bool
    basis: str
    """Hash of judge, instruction, question and both answers; it is used again only under the same."""


async def compare(
    judge: Judge,
    questions: Sequence[Question],
    rows: Iterable[AnswerRow],
    pairs: Sequence[tuple[str, str]],
    path: Path,
    *,
    concurrency: int,
    tick: Callable[[int], None],
) -> list[Judgement]:
    """Has every pair of sides compared on every question for a judge.

    Args:
        judge: Open.
        questions: The exam.
        rows: All sides' answers.
        pairs: Sides to compare.
        path: `judgements.jsonl`; comparisons of the same answers that stand there are not asked again.
        concurrency: Comparisons at once.
        tick: Told how many are done.

    Raises:
        PreceptorError: The judge does not answer, or too little of what it says can be read.
    """
    answers = {(row.side, row.question): row.graded.answer for row in rows}
    asked = [question for question in questions if isinstance(question, JudgeQuestion)]
    seats = list(itertools.product(pairs, asked))
    kept = _kept(path)
    write_atomic(path, "".join(one.model_dump_json() + "\n" for one in kept.values()))
    done = 0

    with path.open("a", encoding="utf-8") as stream:

        async def one(seat: tuple[tuple[str, str], JudgeQuestion]) -> Judgement:
            nonlocal done
            (first, second), question = seat
            texts = answers[first, question.id], answers[second, question.id]
            basis = _basis(judge.name, question, texts)
            judgement = kept.get((question.id, first, second, basis))
            if judgement is None:
                judgement = await _judge(judge, question, (first, second), texts, basis)
                stream.write(judgement.model_dump_json() + "\n")
                stream.flush()
            done += 1
            tick(done)
            return judgement

        judged = await each(seats, one, limit=concurrency)
    _require_readable(judge, judged)
    return judged


async def _judge(
    judge: Judge, question: JudgeQuestion, pair: tuple[str, str], texts: tuple[str, str], basis: str
) -> Judgement:
    outcome, agreed, readable = Outcome.TIE, True, True
    if fold(texts[0]) != fold(texts[1]):
        forward = await judge.prefers(question, texts[0], texts[1])
        backward = await judge.prefers(question, texts[1], texts[0])
        readable = forward is not None and backward is not None
        seen = {"1": Outcome.FIRST, "2": Outcome.SECOND, "tie": Outcome.TIE}
        turned = {"1": Outcome.SECOND, "2": Outcome.FIRST, "tie": Outcome.TIE}
        if forward is not None and backward is not None:
            agreed = seen[forward] is turned[backward]
            outcome = seen[forward] if agreed else Outcome.TIE
    return Judgement(
        question=question.id,
        first=pair[0],
        second=pair[1],
        outcome=outcome,
        agreed=agreed,
        readable=readable,
        basis=basis,
    )


def summarise(judge: str, judgements: Sequence[Judgement]) -> Judging:
    """Counts what a report says of its judge."""
    return Judging(
        judge=judge,
        prompt_sha=PROMPT_SHA,
        comparisons=len(judgements),
        disagreed=sum(not one.agreed for one in judgements),
        unreadable=sum(not one.readable for one in judgements),
    )


def settle(rows: Sequence[AnswerRow], judgements: Sequence[Judgement], reference: str) -> list[AnswerRow]:
    """Writes outcomes into the rows: an answer counts as right where it beat the reference side's.

    The reference side's own answer counts as right where it beat that of the first side that it was compared with.
    """
    against: dict[tuple[str, str], tuple[str, str]] = {}
    for one in judgements:
        if reference not in (one.first, one.second):
            continue
        other = one.second if one.first == reference else one.first
        against[other, one.question] = (reference, _fate(one, other))
        against.setdefault((reference, one.question), (other, _fate(one, reference)))
    settled = []
    for row in rows:
        if (found := against.get((row.side, row.question))) is None:
            settled.append(row)
            continue
        opponent, fate = found
        reason = {"won": "", "lost": f"{opponent}'s answer is better", "tied": f"no better than {opponent}'s"}[fate]
        graded = row.graded.model_copy(update={"correct": fate == "won", "reason": reason})
        settled.append(row.model_copy(update={"graded": graded}))
    return settled


def outcomes_of(judgements: Iterable[Judgement], first: str, second: str) -> Mapping[str, Outcome]:
    """By question, which of two sides won; empty where they were not compared."""
    found: dict[str, Outcome] = {}
    turned = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST, Outcome.TIE: Outcome.TIE}
    for one in judgements:
        if (one.first, one.second) == (first, second):
            found[one.question] = one.outcome
        elif (one.second, one.first) == (first, second):
            found[one.question] = turned[one.outcome]
    return found


def _fate(judgement: Judgement, side: str) -> str:
    if judgement.outcome is Outcome.TIE:
        return "tied"
    winner = judgement.first if judgement.outcome is Outcome.FIRST else judgement.second
    return "won" if winner == side else "lost"


def _basis(judge: str, question: JudgeQuestion, texts: tuple[str, str]) -> str:
    parts = [judge, PROMPT_SHA, question.question, question.reference, question.criteria, *texts]
    return sha256_bytes(canonical_json(parts).encode())


def _kept(path: Path) -> dict[tuple[str, str, str, str], Judgement]:
    kept: dict[tuple[str, str, str, str], Judgement] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            one = Judgement.model_validate_json(line)
        except ValidationError:
            continue
        if one.readable:
            kept[one.question, one.first, one.second, one.basis] = one
    return kept


def _require_readable(judge: Judge, judged: Sequence[Judgement]) -> None:
    bad = [one for one in judged if not one.readable]
    if len(bad) > _UNREADABLE_SHARE * len(judged):
        raise PreceptorError(
            f"Of {len(judged)} comparisons, the judge {judge.name!r} answered {len(bad)} with nothing readable, "
            f"e.g. on question {bad[0].question!r}.",
            code="judge_unreadable",
            hint="Take a larger judge, or one with structured output; the readable comparisons are kept.",
        )
