"""Holds an exam from the first knock at the gateway to settled rows; stage evaluate and the exam commands call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import Sha256, sha256_file, write_atomic
from preceptor_contracts.records import JudgeQuestion, McqQuestion, Question
from preceptor_contracts.report import Judging
from preceptor_contracts.served_names import RAW_BASE, parse_served_name

from preceptor_trainer.evaluate.comparing import compare, settle, summarise
from preceptor_trainer.evaluate.exam import AnswerRow, Basis, Sheet, examine
from preceptor_trainer.evaluate.graders import Grader, grader_for
from preceptor_trainer.evaluate.judge import Judge
from preceptor_trainer.evaluate.patience import Patience, require_served
from preceptor_trainer.evaluate.sitting import Sitting
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop


class Paper(NamedTuple):
    """An exam ready to be sat."""

    folder: DomainFolder
    questions: tuple[Question, ...]
    sha: Sha256
    grader: Grader

    @property
    def has_judge(self) -> bool:
        """Some questions need a judge."""
        return any(isinstance(question, JudgeQuestion) for question in self.questions)

    def basis(self, engine: str, settings: TrainerSettings) -> Basis:
        """What answers to it hang on."""
        graded_by = (sha256_file(self.folder.database),) if self.folder.domain.database is not None else ()
        return Basis((self.sha, *graded_by), self.folder.domain, engine, settings.base_model)


class Seats(NamedTuple):
    """Who sits, where the answers go, and which pairs a judge compares."""

    served: Mapping[str, str]
    """Served name of each side; the first is the reference."""
    path: Path
    """Folder of `answers.jsonl`."""
    goes_on: bool
    pairs: Sequence[tuple[str, str]]


class Held(NamedTuple):
    """An exam that was sat."""

    sitting: Sitting
    engine: str
    judging: Judging | None


def set_paper(folder: DomainFolder, questions: tuple[Question, ...], sha: Sha256, settings: TrainerSettings) -> Paper:
    """Makes an exam ready, before anybody is asked.

    Raises:
        InvalidInput: The database or an expected query is broken.
        PrerequisiteError: It needs a judge and none is set.
    """
    require_judge(settings, questions)
    return Paper(folder, questions, sha, grader_for(folder, questions))


def require_judge(settings: TrainerSettings, questions: Sequence[Question]) -> None:
    """Refuses an exam that needs a judge where none is set.

    Raises:
        PrerequisiteError: No judge is set.
    """
    if any(isinstance(question, JudgeQuestion) for question in questions):
        Judge.require(settings)


def check_served(served: Sequence[str], questions: Sequence[Question]) -> None:
    """Refuses served names that cannot sit an exam, before anybody is asked.

    Raises:
        InvalidInput: One is no served name, stands there twice, or has no domain prompt for multiple choice.
    """
    for name in served:
        parse_served_name(name)
        if served.count(name) > 1:
            raise InvalidInput(f"{name!r} stands there twice.", hint="Name every served name once.")
        if name == RAW_BASE and any(isinstance(question, McqQuestion) for question in questions):
            raise InvalidInput(
                f"{name!r} has no domain prompt, so it cannot be asked multiple choice.",
                hint="Name '<domain>:base', which is the base model with the domain's prompt.",
            )


async def hold(shop: Workshop, gateway: Gateway, patience: Patience, paper: Paper, seats: Seats) -> Held:
    """Has everybody sit the exam, and a judge compare what needs one.

    Raises:
        PreceptorError: The gateway stayed away, a served name does not exist, or the judge is of no use.
    """
    settings, served = shop.settings, seats.served
    engine = (await patience.health()).engine
    await require_served(patience, list(served.values()))
    with shop.terminal.progress("exam", len(served) * len(paper.questions)) as tick:
        rows = await examine(
            patience,
            paper.grader,
            paper.questions,
            served,
            Sheet(seats.path / "answers.jsonl", paper.basis(engine, settings), seats.goes_on),
            concurrency=settings.concurrency,
            tick=tick,
        )
    if not paper.has_judge:
        return Held(Sitting(tuple(rows)), engine, None)
    return await _judged(shop, paper, seats, rows, engine)


async def _judged(shop: Workshop, paper: Paper, seats: Seats, rows: list[AnswerRow], engine: str) -> Held:
    count = len(seats.pairs) * sum(isinstance(question, JudgeQuestion) for question in paper.questions)
    async with shop.judge(shop.settings) as judge:
        with shop.terminal.progress("judge", count) as tick:
            judgements = await compare(
                judge,
                paper.questions,
                rows,
                seats.pairs,
                seats.path / "judgements.jsonl",
                concurrency=shop.settings.concurrency,
                tick=tick,
            )
    settled = settle(rows, judgements, next(iter(seats.served)))
    write_atomic(seats.path / "answers.jsonl", "".join(row.model_dump_json() + "\n" for row in settled))
    return Held(Sitting(tuple(settled), tuple(judgements)), engine, summarise(judge.name, judgements))
