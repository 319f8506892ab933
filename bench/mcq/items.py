"""What is asked: the allergy exam, and passages with four questions each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from preceptor_contracts.frozen import Frozen, read_jsonl
from preceptor_contracts.mcq import AnsweredMcq
from preceptor_contracts.messages import Text
from preceptor_contracts.records import QUESTIONS, McqQuestion
from pydantic import Field, TypeAdapter

T = TypeVar("T")

PASSAGES = Path(__file__).with_name("passages.jsonl")


class Item(NamedTuple):
    """One question that every side is asked."""

    id: str
    mcq: AnsweredMcq


class Passage(Frozen):
    """A line of passages.jsonl: a text and its questions, in the order in which they are asked."""

    id: Text
    passage: Text
    questions: Annotated[tuple[AnsweredMcq, ...], Field(min_length=2)]

    @property
    def items(self) -> tuple[Item, ...]:
        """The questions, each with the text."""
        return tuple(
            Item(f"{self.id}-{number}", question.model_copy(update={"passage": self.passage}))
            for number, question in enumerate(self.questions, start=1)
        )


_PASSAGE: TypeAdapter[Passage] = TypeAdapter(Passage)


def load_exam(path: Path) -> tuple[Item, ...]:
    """Reads the multiple-choice questions of an exam."""
    return tuple(
        Item(row.id, AnsweredMcq(question=row.question, options=row.options, answer=row.answer))
        for row in read_jsonl(path, QUESTIONS)
        if isinstance(row, McqQuestion)
    )


def load_passages(path: Path = PASSAGES) -> tuple[Passage, ...]:
    """Reads the passages."""
    return read_jsonl(path, _PASSAGE)


def share(all_of_them: tuple[T, ...], number: int, rounds: int) -> tuple[T, ...]:
    """The part of round `number` (from 0): every `rounds`-th, so that the rounds together take each of them once."""
    return all_of_them[number::rounds]
