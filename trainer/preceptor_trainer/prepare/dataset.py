"""Stage prepare: a file of rows becomes a checked, deduplicated, tokenised dataset on disk, or a list of what is wrong.

Start at `prepare`. A dataset of any size is used through `Dataset`, whose parts are read as they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, overload

import numpy as np
from preceptor_contracts.domains import Domain, DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen, read_jsonl
from preceptor_contracts.manifest import DatasetSummary
from preceptor_contracts.records import QUESTIONS, RECORDS, Example, Question, Record, to_example

from preceptor_trainer.evaluate.questions import check_questions
from preceptor_trainer.prepare.cleaning import clean
from preceptor_trainer.prepare.draft import Draft, converter_of, remove_intermediate, write_draft
from preceptor_trainer.prepare.lines import Lines, read_lines
from preceptor_trainer.prepare.privacy import masked
from preceptor_trainer.prepare.reading import Problem, look_at
from preceptor_trainer.prepare.report import (
    SHOWN,
    Fault,
    Length,
    PreparationReport,
    Reading,
    bad_rows,
    find_faults,
    make_report,
    refuse,
    too_long,
    write_report,
)
from preceptor_trainer.prepare.tally import Tally
from preceptor_trainer.prepare.tokenised import Tokenised, TokenWriter, is_sealed, tokenizer_sha
from preceptor_trainer.terminal import ShowProgress, untold
from preceptor_trainer.tokens import tokenise_many

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARATION = "preparation"
"""Folder in a run that holds the preparation's report and the token ids."""
_BATCH = 256
T = TypeVar("T")


class Lengths(Frozen):
    """Tokens a record, prompt and answer."""

    shortest: int
    median: int
    longest: int
    answer_tokens: int
    """Tokens that carry loss, in one pass."""
    shared: int
    """The beginning that all prompts have in common: the domain's system message."""


class Prepared(Frozen):
    """What stage prepare found; the rest is in `preparation/report.json`."""

    dataset: DatasetSummary
    lengths: Lengths


class View(Sequence[T], Generic[T]):
    """The records of a file, or what is made of them; each is made when it is asked for.

    Args:
        lines: The file.
        make: Turns one line into an item.
    """

    def __init__(self, lines: Lines, make: Callable[[bytes], T]) -> None:
        self._lines, self._make = lines, make

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> list[T]: ...

    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        return self._make(self._lines[range(len(self))[at]])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._lines)


class Dataset(NamedTuple):
    """Records ready to train on, wherever they are kept."""

    records: Sequence[Record]
    examples: Sequence[Example]
    tokenised: Tokenised

    def lengths(self) -> Lengths:
        """Counts its tokens."""
        whole = self.tokenised.counts.whole
        return Lengths(
            shortest=int(whole.min()),
            median=int(np.median(whole)),
            longest=int(whole.max()),
            answer_tokens=int(self.tokenised.counts.answers.sum()),
            shared=self.tokenised.shared,
        )


class Given(NamedTuple):
    """What is to be prepared, and how."""

    domain: Domain
    data: Path
    questions: Sequence[Question]
    """The exam, which no record may give away."""
    length: Length
    reading: Reading = Reading()
    show: ShowProgress = untold
    """Shows progress."""


class Outcome(NamedTuple):
    """What became of it."""

    report: PreparationReport
    faults: tuple[Fault, ...]
    draft: Draft
    dataset: Dataset | None
    """None where lengths were not counted."""

    def accepted(self) -> tuple[Dataset, Prepared]:
        """Returns the dataset and its summary.

        Raises:
            InvalidInput: Something speaks against it; all of that is told.
        """
        refuse(self.faults)
        assert self.dataset is not None, "a dataset without faults was counted"
        draft, repeats = self.draft, self.draft.repeats
        summary = DatasetSummary(
            sha256=draft.sha256,
            records=len(draft.lines),
            tokens=int(self.dataset.tokenised.counts.whole.sum()),
            topics=dict(sorted(draft.topics.items())),
            duplicates_removed=repeats.exact.count,
            near_duplicates_removed=repeats.near.count,
            contradictions=repeats.contradictions.count,
            leaks=draft.leak_summary,
        )
        return self.dataset, Prepared(dataset=summary, lengths=self.dataset.lengths())


def read_records(path: Path, encoding: str | None = None) -> tuple[Record, ...]:
    """Reads a data file of any known format at once, for a look at it that makes no run; `prepare` checks far more.

    Raises:
        InvalidInput: The file cannot be read, or rows cannot be used, each with line and field.
    """
    source = look_at(path, encoding)
    converter, records = converter_of(source), list[Record]()
    problems: Tally[Problem] = Tally()
    for row in source.rows():
        if isinstance(row, Problem):
            problems.add(row)
            continue
        try:
            records.append(converter.convert(clean(row.value), row.number).record)
        except ValueError as error:
            problems.add(Problem(row.number, masked(str(error))))
    refuse(bad_rows(source, problems, len(records)))
    return tuple(records)


def read_exam(folder: DomainFolder, path: Path | None = None) -> tuple[Question, ...]:
    """Reads an exam for a domain.

    Args:
        folder: The domain's.
        path: The exam; the domain's own unless it is given.

    Raises:
        InvalidInput: Bad rows, an id used twice, or a question that the domain cannot ask.
    """
    exam = path or folder.exam
    questions = read_jsonl(exam, QUESTIONS)
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise InvalidInput(
            f"{exam}: id {repeated[0]!r} is used by more than one question.", hint="Give each its own id."
        )
    check_questions(folder.domain, questions, exam)
    return questions


def prepare(
    given: Given, folder: Path, load: Callable[[], PreTrainedTokenizerBase] | None, *, thorough: bool = False
) -> Outcome:
    """Reads, cleans, checks and tokenises records, and leaves dataset, token ids and report in a folder.

    Args:
        given: What, and how.
        folder: Empty. Afterwards it has what a run keeps: `dataset.jsonl` and `preparation/`.
        load: Gives the base model's tokenizer; called only once the records are known to be sound. None: lengths are
            not counted.
        thorough: Counts lengths though something is wrong already, so that one look shows everything.

    Raises:
        InvalidInput: The file is missing, in an unknown format, or breaks off. All else is in the outcome's faults.
    """
    source = look_at(given.data, given.reading.encoding)
    draft = write_draft(given.domain, source, given.questions, folder, given.show)
    faults = find_faults(draft, given.reading)
    inside = folder / PREPARATION
    inside.mkdir()
    dataset = None
    if load is not None and len(draft.lines) and (thorough or not faults):
        dataset, refused = _tokenise(given.domain, draft.lines, draft.sha256, load(), inside, given.show)
        if dataset is not None:
            faults += too_long(draft, dataset.tokenised.counts, given.length.max_length)
        faults += refused
    report = make_report(draft, dataset.tokenised.counts if dataset else None, given.length, given.reading, faults)
    write_report(inside, report)
    remove_intermediate(folder)
    return Outcome(report, tuple(faults), draft, dataset)


def reload(domain: Domain, path: Path, tokenizer: PreTrainedTokenizerBase, *, expected_sha: str) -> Dataset:
    """Opens a run's dataset again, which was checked when the run was made.

    Token ids are made anew only where those beside it are not whole or came of another tokenizer.

    Raises:
        InvalidInput: The file was altered since.
    """
    lines, sha = read_lines(path)
    if sha != expected_sha:
        raise InvalidInput(f"{path} was altered after its run was made.", hint="Start a new run.")
    folder = path.parent / PREPARATION
    folder.mkdir(exist_ok=True)
    if is_sealed(folder, sha, tokenizer_sha(tokenizer)):
        return _dataset(domain, lines, folder)
    dataset, faults = _tokenise(domain, lines, sha, tokenizer, folder)
    refuse(faults)
    assert dataset is not None, "what has no faults was tokenised"
    return dataset


def _dataset(domain: Domain, lines: Lines, folder: Path) -> Dataset:
    def example(line: bytes) -> Example:
        return to_example(domain, RECORDS.validate_json(line))

    return Dataset(View(lines, RECORDS.validate_json), View(lines, example), Tokenised(folder, lines))


def _tokenise(
    domain: Domain,
    lines: Lines,
    sha: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    show: ShowProgress = untold,
) -> tuple[Dataset | None, list[Fault]]:
    """Writes the token ids of all records, or says which records the chat template cannot take."""
    refused: Tally[InvalidInput] = Tally(SHOWN)
    writer = TokenWriter(folder)
    try:
        with show("tokenise", len(lines) + 1) as tick:
            for number, batch in enumerate(_batches(domain, lines)):
                tick(number * _BATCH)
                for done in tokenise_many(tokenizer, batch):
                    if isinstance(done, InvalidInput):
                        refused.add(done)
                    elif not refused.count:
                        writer.add(done)
        if not refused.count:
            writer.close(sha, tokenizer_sha(tokenizer))
            return _dataset(domain, lines, folder), []
    finally:
        writer.discard()
    more = f"\n... and {refused.count - SHOWN} more." if refused.count > SHOWN else ""
    message = "\n".join(error.message for error in refused.first) + more
    return None, [Fault(refused.first[0].code, message, refused.first[0].hint)]


def _batches(domain: Domain, lines: Lines) -> Iterator[list[tuple[Example, str]]]:
    batch: list[tuple[Example, str]] = []
    for line in lines:
        record = RECORDS.validate_json(line)
        batch.append((to_example(domain, record), record.id))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
