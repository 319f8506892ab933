"""Which candidates people need not look at: those that repeat the exam, the training data, or each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.records import (
    QUESTIONS,
    ChatRecord,
    ExactQuestion,
    McqRecord,
    Question,
    Record,
    asked_text,
)

from preceptor_trainer.generate.candidates import Candidate
from preceptor_trainer.prepare.dataset import read_records
from preceptor_trainer.prepare.leaks import find_leaks


class Screened(NamedTuple):
    """Candidates worth a look, and how many are not."""

    kept: tuple[Candidate, ...]
    exam: int
    """Left out because they repeat an exam question."""
    training: int
    """Left out because they repeat a training record."""
    others: int
    """Left out because they repeat an earlier candidate, a rejected one included."""


def read_training(path: Path) -> tuple[Record, ...]:
    """Reads records of any known format; a file that is not there or empty holds none: a domain may begin so.

    Raises:
        InvalidInput: A row is no record.
    """
    return read_records(path) if _has_text(path) else ()


def read_questions(folder: DomainFolder) -> tuple[Question, ...]:
    """Reads a domain's exam; empty where it has none yet.

    Raises:
        InvalidInput: A line is no question.
    """
    return read_jsonl(folder.exam, QUESTIONS) if _has_text(folder.exam) else ()


def _has_text(path: Path) -> bool:
    return path.is_file() and bool(path.read_bytes().strip())


def screen(
    candidates: Sequence[Candidate],
    training: Sequence[Record],
    exam: Sequence[Question],
    *,
    decided: Collection[str],
) -> Screened:
    """Keeps the first of every group of candidates that ask the same.

    Args:
        candidates: In the order that they were made.
        training: Records that the domain has.
        exam: Its questions.
        decided: Ids that were accepted or rejected before; they are not proposed again, nor is what repeats them.
    """
    unique = list({candidate.record.id: candidate for candidate in reversed(candidates)}.values())[::-1]
    records = [candidate.record for candidate in unique]
    in_exam = {leak.record_id for leak in find_leaks(records, exam)}
    in_training = repeated(records, training)
    others = repeated(records, records)
    kept: dict[str, Candidate] = {}
    counts = {"exam": 0, "training": 0, "others": 0}
    for candidate in unique:
        name = candidate.record.id
        if name in decided:
            continue
        if name in in_exam:
            counts["exam"] += 1
        elif name in in_training:
            counts["training"] += 1
        elif any(other in kept or other in decided for other in others.get(name, ()) if other != name):
            counts["others"] += 1
        else:
            kept[name] = candidate
    return Screened(tuple(kept.values()), **counts)


def repeated(records: Sequence[Record], existing: Sequence[Record]) -> dict[str, list[str]]:
    """Finds the ids of existing records that ask what a record asks, by the measure of the leak check."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for leak in find_leaks(records, [question for record in existing for question in _as_questions(record)]):
        found[leak.record_id].append(leak.question_id)
    return found


def _as_questions(record: Record) -> list[Question]:
    """The leak check compares records with questions; what makes two of them the same is one matter."""
    if isinstance(record, ChatRecord):
        texts = [message.content for message in record.messages if message.role == "user"]
    elif isinstance(record, McqRecord) and record.passage:
        texts = [f"{record.passage} {record.question}"]
    else:
        texts = [asked_text(record)]
    return [
        ExactQuestion(id=record.id, topic=record.topic, group="existing", kind="exact", question=text, answer="-")
        for text in texts
        if text.strip()
    ]
