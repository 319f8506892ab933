"""Brings `review.csv` up to date: what reviewers did to it stays, what was decided goes, what is new joins below."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import DomainFolder

from preceptor_trainer.generate.candidates import Candidate, Support, WorkDir
from preceptor_trainer.generate.review import NEEDED, to_row, write_review
from preceptor_trainer.generate.screening import Screened, read_questions, read_training, screen
from preceptor_trainer.generate.spreadsheet import read_table

DEFAULT_SEPARATOR = ","


class Proposed(NamedTuple):
    """What the file holds now."""

    rows: int
    new: int
    doubtful: int
    """New rows whose evidence is not in their document."""
    screened: Screened


def require_readable(work: WorkDir, folder: DomainFolder, existing: Path) -> None:
    """Reads all that `propose` will read, so that nobody pays for answers that cannot be put anywhere.

    Raises:
        InvalidInput: `review.csv`, the training data or the exam cannot be read.
    """
    _kept(work, set())
    read_training(existing)
    read_questions(folder)


def propose(work: WorkDir, folder: DomainFolder, existing: Path, separator: str | None) -> Proposed:
    """Writes `review.csv` again.

    Args:
        work: Where it lies.
        folder: The domain, whose exam no candidate may repeat.
        existing: Its training records, which none may repeat either.
        separator: Of its columns; None keeps the file's own.

    Raises:
        InvalidInput: The file, the training data or the exam cannot be read.
    """
    lines = work.read()
    decided = {decision.id for decision in lines.decisions}
    origins = {
        candidate.record.id: (candidate, answered)
        for answered in reversed(lines.answered)
        for candidate in answered.candidates
    }
    screened = screen(
        [candidate for answered in lines.answered for candidate in answered.candidates],
        read_training(existing),
        read_questions(folder),
        decided=decided,
    )
    kept, found = _kept(work, decided)
    there = {row.get("id") for row in kept}
    new: list[Candidate] = [candidate for candidate in screened.kept if candidate.record.id not in there]
    rows = [*kept, *(to_row(*origins[candidate.record.id]) for candidate in new)]
    write_review(work.review, rows, separator or found)
    doubtful = sum(candidate.support is Support.UNSUPPORTED for candidate in new)
    return Proposed(len(rows), len(new), doubtful, screened)


def _kept(work: WorkDir, decided: set[str]) -> tuple[list[dict[str, str]], str]:
    """Rows that stay, with the separator of the file."""
    if not work.review.is_file():
        return [], DEFAULT_SEPARATOR
    table = read_table(work.review, NEEDED)
    return [row.cells for row in table.rows if row.cells.get("id") not in decided], table.separator
