"""`review.csv`: candidates as rows that a person accepts, rejects or mends, and such rows as records again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.mcq import LABELS
from preceptor_contracts.records import RECORDS, ChatRecord, McqRecord, PromptCompletionRecord, Record
from pydantic import ValidationError

from preceptor_trainer.generate.candidates import Answered, Candidate, Support
from preceptor_trainer.generate.spreadsheet import Row, read_table, write_table

NEEDED = ("accept", "id", "kind", "topic", "question", "answer")
TOLD = ("evidence", "document", "served", "note")
"""For the reviewer; not read again."""
YES = frozenset({"yes", "y", "1", "x", "true", "ja", "j", "wahr", "oui", "vrai", "ok"})
NO = frozenset({"no", "n", "0", "false", "nein", "falsch", "non", "faux"})
Mark = Literal["accepted", "rejected", ""]


class Reviewed(NamedTuple):
    """A row that a person decided on."""

    row: Row
    mark: Mark
    """Empty: not yet."""
    record: Record
    """With the reviewer's changes."""


def option_columns(count: int) -> tuple[str, ...]:
    """Names of the options' columns: the letter of the right one is the answer."""
    return tuple(f"option_{label.casefold()}" for label in LABELS[:count])


def write_review(path: Path, rows: Sequence[Mapping[str, str]], separator: str) -> None:
    """Writes the rows; options have as many columns as the longest row needs."""
    used = [column for column in option_columns(len(LABELS)) if any(row.get(column) for row in rows)]
    known = {*NEEDED, *used, *TOLD}
    # Columns that a reviewer added stay.
    more = dict.fromkeys(name for row in rows for name in row if name not in known and row[name])
    write_table(path, (*NEEDED, *used, *TOLD, *more), rows, separator)


def to_row(candidate: Candidate, answered: Answered) -> dict[str, str]:
    """Spells a candidate as a row without a mark."""
    record = candidate.record
    shared = {
        "accept": "",
        "id": record.id,
        "kind": record.kind,
        "topic": record.topic,
        "evidence": candidate.evidence,
        "document": answered.origin,
        "served": answered.served,
        "note": "" if candidate.support is Support.QUOTED else candidate.support.value,
    }
    if isinstance(record, McqRecord):
        options = dict(zip(option_columns(len(record.options)), record.options, strict=True))
        return {**shared, "question": record.question, "answer": LABELS[record.answer], **options}
    if isinstance(record, ChatRecord):
        return {**shared, "question": record.messages[0].content, "answer": record.messages[-1].content}
    if isinstance(record, PromptCompletionRecord):
        return {**shared, "question": record.prompt, "answer": record.completion}
    raise TypeError(f"records of kind {record.kind!r} are not generated")


def read_review(path: Path, candidates: Mapping[str, Candidate]) -> tuple[Reviewed, ...]:
    """Reads what a person made of a review file.

    Args:
        path: The file, as a spreadsheet wrote it.
        candidates: All that were ever proposed, by id.

    Raises:
        InvalidInput: One error that names every bad cell by row, line and column.
    """
    reviewed: list[Reviewed] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for row in read_table(path, NEEDED).rows:
        found = list(_problems(row, candidates, seen))
        record = None if found else _record(row, candidates[row.cells["id"]].record, found)
        problems += [f"{path} row {row.number} (line {row.line}), column {problem}" for problem in found]
        if record:
            reviewed.append(Reviewed(row, _mark(row), record))
        seen.setdefault(row.cells.get("id", ""), row.number)
    refuse(problems, path)
    return tuple(reviewed)


def refuse(problems: Sequence[str], path: Path) -> None:
    """Raises `InvalidInput` with all problems, if there are any."""
    if problems:
        raise InvalidInput(
            "\n".join(problems),
            code="invalid_rows",
            hint=f"Mend {len(problems)} cell(s) of {path.name} and run the command again; nothing was written.",
        )


def _mark(row: Row) -> Mark:
    mark = row.cells.get("accept", "").casefold()
    return "accepted" if mark in YES else "rejected" if mark in NO else ""


def _problems(row: Row, candidates: Mapping[str, Candidate], seen: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with the cells that name a row; each problem begins with its column."""
    name, mark = row.cells.get("id", ""), row.cells.get("accept", "")
    if name not in candidates:
        yield f"'id': {name!r} is no candidate of this domain; records of your own belong in its train.jsonl"
        return
    if name in seen:
        yield f"'id': {name!r} stands in row {seen[name]} already"
    if mark and mark.casefold() not in YES | NO:
        yield f"'accept': {mark!r} is neither yes nor no nor empty"
    if row.cells.get("kind") != candidates[name].record.kind:
        yield f"'kind': {row.cells.get('kind', '')!r} must stay {candidates[name].record.kind!r}"


def _record(row: Row, proposed: Record, problems: list[str]) -> Record | None:
    """Reads a row as a record; where it is none, adds to `problems`. Rejected rows need not be right any more."""
    if _mark(row) != "accepted":
        return proposed
    cells = row.cells
    if blank := [name for name in ("topic", "question", "answer") if not cells.get(name)]:
        problems += [f"{name!r}: is empty" for name in blank]
        return None
    question, answer = cells["question"], cells["answer"]
    fields: dict[str, object] = {
        "id": proposed.id,
        "kind": proposed.kind,
        "topic": cells["topic"],
        "source": proposed.source,
    }
    options: list[str] = []
    if isinstance(proposed, McqRecord):
        options = [column for column in option_columns(len(LABELS)) if cells.get(column)]
        label = f"option_{answer.casefold()}"
        if label not in options:
            letters = ", ".join(column[-1].upper() for column in options) or "none"
            problems.append(f"'answer': {answer!r} is not the letter of an option that is there ({letters})")
            return None
        texts = [cells[column] for column in options]
        fields |= {"question": question, "options": texts, "answer": options.index(label)}
    elif isinstance(proposed, ChatRecord):
        fields["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    else:
        fields |= {"prompt": question, "completion": answer}
    try:
        return RECORDS.validate_python(fields)
    except ValidationError as error:
        problems += [_told(problem["loc"][1:], problem["msg"], options) for problem in error.errors()]
        return None


def _told(place: Sequence[int | str], message: str, options: Sequence[str]) -> str:
    """Names the column of a problem; only options can be wrong in a way that their cells do not show."""
    is_option = len(place) > 1 and place[0] == "options" and isinstance(place[1], int)
    column = options[int(place[1])] if is_option else ".".join(str(step) for step in place)
    return f"{column!r}: {message.removeprefix('Value error, ')}"
