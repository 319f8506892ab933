"""Accepted rows of a review file become training records: all of them, or none if one is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import write_atomic
from preceptor_contracts.records import Record
from pydantic import JsonValue

from preceptor_trainer.generate.candidates import Decision, WorkDir
from preceptor_trainer.generate.review import Reviewed, read_review, refuse
from preceptor_trainer.generate.screening import read_questions, read_training, repeated
from preceptor_trainer.prepare.leaks import find_leaks
from preceptor_trainer.prepare.reading import Container, look_at


class Accepted(NamedTuple):
    """What became of a review file's rows."""

    into: Path
    appended: int
    there_before: int
    """Accepted rows that the file held already, by id."""
    repeats: tuple[tuple[str, str], ...]
    """Accepted rows left out, each with the record that it repeats."""
    rejected: int
    undecided: int


def accept(work: WorkDir, folder: DomainFolder, review: Path, existing: Path, into: Path | None) -> Accepted:
    """Appends the accepted rows of a review file to a file of training records.

    Args:
        work: Whose candidates were reviewed.
        folder: The domain, whose exam must not be given away.
        review: The file, as a spreadsheet wrote it.
        existing: The domain's training records, which must not be repeated.
        into: Where to append; None: the domain's training records.

    Raises:
        InvalidInput: A row is wrong or gives an exam question away; nothing was written.
    """
    into = into or folder.train
    if into.exists() and folder.exam.exists() and into.samefile(folder.exam):
        raise InvalidInput(f"{into} is the exam.", hint="Generated records are for training.")
    if into.is_dir():
        raise InvalidInput(f"{into} is a folder.", hint="Name a .jsonl file.")
    _refuse_other_formats(into)
    lines = work.read()
    candidates = {candidate.record.id: candidate for answered in lines.answered for candidate in answered.candidates}
    training = read_training(existing)
    target = training if into == existing else read_training(into)
    known = {record.id for record in (*training, *target)}
    reviewed = read_review(review, candidates)
    _refuse_second_thoughts(reviewed, known, review)
    accepted = [row for row in reviewed if row.mark == "accepted"]
    fresh = [row for row in accepted if row.record.id not in known]
    _refuse_leaks(fresh, folder, review)
    repeats = _repeats([row.record for row in fresh], [*training, *(target if target is not training else ())])
    records = [row.record for row in fresh if row.record.id not in repeats]
    if records:
        _append(into, records)
    # Only now: a kill in between leaves records without decisions, which accepting the same file again mends.
    _decide(work, lines.decisions, reviewed, repeats, into)
    return Accepted(
        into=into,
        appended=len(records),
        there_before=len(accepted) - len(fresh),
        repeats=tuple(repeats.items()),
        rejected=sum(row.mark == "rejected" for row in reviewed),
        undecided=sum(not row.mark for row in reviewed),
    )


def _refuse_other_formats(into: Path) -> None:
    """Lines of JSON fit behind lines of JSON only; a CSV or an array would be spoilt by them."""
    if not into.exists() or not into.read_bytes().strip():
        return
    source = look_at(into)
    if source.container is not Container.LINES or source.compressed:
        raise InvalidInput(
            f"{into} holds {source.described()}; records are appended as lines of JSON.",
            code="unknown_format",
            hint="Name a .jsonl file: --into FILE. Training reads one file: convert the other one first.",
        )


def _refuse_second_thoughts(reviewed: Sequence[Reviewed], known: set[str], review: Path) -> None:
    refuse(
        [
            f"{review} row {row.row.number} (line {row.row.line}), column 'accept': {row.record.id!r} was accepted "
            "before; take it out of the training records by hand"
            for row in reviewed
            if row.mark == "rejected" and row.record.id in known
        ],
        review,
    )


def _refuse_leaks(rows: Sequence[Reviewed], folder: DomainFolder, review: Path) -> None:
    places = {row.record.id: row.row for row in rows}
    leaks = find_leaks([row.record for row in rows], read_questions(folder))
    refuse(
        [
            f"{review} row {places[leak.record_id].number} (line {places[leak.record_id].line}), column 'question': "
            f"repeats exam question {leak.question_id!r}; answer no in column 'accept', or ask for something else"
            for leak in leaks
        ],
        review,
    )


def _repeats(records: Sequence[Record], existing: Sequence[Record]) -> dict[str, str]:
    """Records that ask what an existing one or an earlier one of them asks, each with that one's id."""
    found = {name: others[0] for name, others in repeated(records, existing).items()}
    among = repeated(records, records)
    kept: set[str] = set()
    for record in records:
        if record.id in found:
            continue
        if earlier := [other for other in among.get(record.id, ()) if other in kept]:
            found[record.id] = earlier[0]
        else:
            kept.add(record.id)
    return found


def _append(path: Path, records: Sequence[Record]) -> None:
    # Byte for byte as it was: read_text would make other line ends of it.
    old = path.read_bytes().decode() if path.exists() else ""
    new = "".join(json.dumps(_spelled(record), ensure_ascii=False) + "\n" for record in records)
    write_atomic(path.resolve(), old + ("\n" if old and not old.endswith("\n") else "") + new)


def _spelled(record: Record) -> dict[str, JsonValue]:
    """In the order that people write records in, without what was not said."""
    fields: dict[str, JsonValue] = record.model_dump(mode="json", exclude_defaults=True)
    return {name: fields.pop(name) for name in ("id", "kind", "topic", "source")} | fields


def _decide(
    work: WorkDir, earlier: Sequence[Decision], reviewed: Sequence[Reviewed], repeats: Mapping[str, str], into: Path
) -> None:
    last = {decision.id: decision.verdict for decision in earlier}
    for row in reviewed:
        name = row.record.id
        verdict = "repeats" if name in repeats else row.mark
        if verdict and last.get(name) != verdict:
            where = into.as_posix() if verdict == "accepted" else ""
            work.remember(Decision(id=name, verdict=verdict, into=where, at=datetime.now(UTC)))
