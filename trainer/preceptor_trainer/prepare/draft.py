"""The first half of prepare, which needs no tokenizer: a data file becomes cleaned records on disk, and what is wrong.

One pass over the file; a record in memory is a few hashes. Start at `write_draft`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import canonical_json
from preceptor_contracts.manifest import LeakSummary
from preceptor_contracts.records import RECORDS, Example, Question, Record, to_example

from preceptor_trainer.prepare.cleaning import clean
from preceptor_trainer.prepare.duplicates import Fingerprints, Repeats
from preceptor_trainer.prepare.formats import Converted, Converter
from preceptor_trainer.prepare.leaks import ExamIndex, Leak, LeakTally
from preceptor_trainer.prepare.lines import Lines, LineWriter
from preceptor_trainer.prepare.privacy import PrivacyCheck, masked
from preceptor_trainer.prepare.reading import Problem, Row, Source
from preceptor_trainer.prepare.tally import Tally
from preceptor_trainer.terminal import ShowProgress, untold

DATASET = "dataset.jsonl"
MAX_TOPICS = 1000
"""Reports and manifests break down by topic; more are a column that means something else."""
_ROWS = "rows.jsonl"
_TICK = 256
_REPLACED = "\ufffd"


class Draft(NamedTuple):
    """Records without their token counts, and everything that was found on the way."""

    source: Source
    rows_read: int
    """Rows that are not blank, bad ones included."""
    lines: Lines
    """The records kept, as in `dataset.jsonl`."""
    sha256: str
    """Of `dataset.jsonl`."""
    before: Lines
    """All records, dropped ones included; positions in `repeats` count these."""
    topics: Counter[str]
    topic_of: list[str]
    """Topic of each record kept; equal texts are one object."""
    formats: Counter[str]
    unused: Counter[str]
    """Columns that hold something which was not used, with their rows."""
    cleaned: int
    """Rows whose text was normalised."""
    damaged: int
    """Rows with U+FFFD, which an earlier conversion left where it could not read a character."""
    problems: Tally[Problem]
    repeats: Repeats
    leaks: list[Leak]
    """The first of them."""
    leak_summary: LeakSummary | None
    privacy: PrivacyCheck


def converter_of(source: Source) -> Converter:
    """Makes the converter of a file's rows."""
    return Converter(lambda: (clean(row.value) for row in source.rows() if isinstance(row, Row)))


class _Pass:
    """What grows while the file is read."""

    def __init__(self, domain: Domain, source: Source, questions: Sequence[Question], folder: Path) -> None:
        self.rows_read = self.cleaned = self.damaged = 0
        self.formats: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.problems: Tally[Problem] = Tally()
        self.leaks = LeakTally()
        self.privacy = PrivacyCheck()
        self.topic_names: dict[str, int] = {}
        self.topic_codes = array("I")
        self.prints = Fingerprints(folder)
        self._domain, self._source = domain, source
        self._exam = ExamIndex(questions)
        self._converter = converter_of(source)

    def take(self, row: Row | Problem) -> bytes | None:
        """Returns a row's record as a line of JSON, or None and counts what is wrong."""
        self.rows_read += 1
        if isinstance(row, Problem):
            self.problems.add(row)
            return None
        value = clean(row.value)
        try:
            converted = self._converter.convert(value, row.number)
            example = to_example(self._domain, converted.record)
        except InvalidInput as error:
            way_out = f" ({error.hint.removesuffix('.')})" if error.hint else ""
            self.problems.add(Problem(row.number, masked(error.message.removesuffix(".") + way_out)))
            return None
        except ValueError as error:
            self.problems.add(Problem(row.number, masked(str(error))))
            return None
        self.cleaned += value != row.value
        self._look_through(converted, example, row.number)
        return (canonical_json(converted.record.model_dump(mode="json")) + "\n").encode()

    def _look_through(self, converted: Converted, example: Example, number: int) -> None:
        record = converted.record
        self.formats[converted.format] += 1
        self.unused.update(converted.unused)
        self.prints.add(record, example)
        text = "\n".join([*(message.content for message in example.prompt[1:]), example.answer])
        self.damaged += _REPLACED in text
        self.privacy.see(text, f"{self._source.unit} {number}")
        position = len(self.topic_codes)
        for leak in self._exam.leaks(record):
            self.leaks.add(position, leak)
        code = self.topic_names.setdefault(record.topic, len(self.topic_names))
        if code > MAX_TOPICS:
            # One more than may be is enough to say so; the names of millions would not be small.
            self.topic_names.pop(record.topic)
            code = MAX_TOPICS
        self.topic_codes.append(code)


def write_draft(
    domain: Domain, source: Source, questions: Sequence[Question], folder: Path, show: ShowProgress = untold
) -> Draft:
    """Reads, converts, cleans and checks a data file, and writes `dataset.jsonl`.

    Args:
        domain: Renders the records.
        source: The data file.
        questions: The exam.
        folder: Empty; holds `dataset.jsonl` and intermediate files afterwards.
        show: Shows progress.

    Raises:
        InvalidInput: The file breaks off or cannot be decoded. Bad rows are counted, not raised.
    """
    seen = _Pass(domain, source, questions, folder)
    megabytes = source.path.stat().st_size >> 20
    with closing(seen.prints), LineWriter(folder / _ROWS) as spool, show("read (MB)", megabytes + 1) as tick:
        for row in source.rows():
            line = seen.take(row)
            if line is not None:
                spool.add(line)
            if len(spool) % _TICK == 1:
                # The file may be packed, so what was written only resembles what was read.
                tick(min(spool.size >> 20, megabytes))
    before = spool.lines()

    def render(record: Record) -> Example:
        return to_example(domain, record)

    repeats = seen.prints.find(before, render)
    with LineWriter(folder / DATASET) as kept:
        for line, dropped in zip(before, repeats.dropped, strict=True):
            if not dropped:
                kept.add(line)
    names = list(seen.topic_names)
    codes = np.frombuffer(seen.topic_codes, dtype=np.uint32)[~repeats.dropped]
    topic_of = [names[code] for code in codes]
    leaks, leak_summary = seen.leaks.among(repeats.dropped)
    return Draft(
        source=source,
        rows_read=seen.rows_read,
        lines=kept.lines(),
        sha256=kept.sha256,
        before=before,
        topics=Counter(topic_of),
        topic_of=topic_of,
        formats=seen.formats,
        unused=seen.unused,
        cleaned=seen.cleaned,
        damaged=seen.damaged,
        problems=seen.problems,
        repeats=repeats,
        leaks=leaks,
        leak_summary=leak_summary,
        privacy=seen.privacy,
    )


def remove_intermediate(folder: Path) -> None:
    """Takes away what only the preparation needed."""
    for name in (_ROWS, "bands.u64"):
        (folder / name).unlink(missing_ok=True)


def record_at(lines: Lines, position: int) -> Record:
    """Reads one record."""
    return RECORDS.validate_json(lines[position])
