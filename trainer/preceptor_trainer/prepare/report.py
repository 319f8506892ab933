"""What prepare tells: `report.json` for programs, `report.md` for people, and the faults that refuse a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import LeakSummary

from preceptor_trainer.prepare.draft import MAX_TOPICS, Draft, record_at
from preceptor_trainer.prepare.duplicates import Repeat
from preceptor_trainer.prepare.lines import Lines
from preceptor_trainer.prepare.privacy import masked
from preceptor_trainer.prepare.reading import Problem, Source
from preceptor_trainer.prepare.split import validation_rows
from preceptor_trainer.prepare.tally import Tally
from preceptor_trainer.prepare.tokenised import Counts, histogram

SHOWN = 10
"""Findings of one sort that an error message lists; the report lists more."""
_PAIRS = 50
_EXCERPT = 120


class Reading(NamedTuple):
    """What the command line says about the data."""

    encoding: str | None = None
    """None finds out."""
    allow_leak: bool = False
    allow_contradictions: bool = False


class Length(NamedTuple):
    """What the recipe says about the records."""

    max_length: int
    """Tokens."""
    validation_share: float
    seed: int


class BadRow(Frozen):
    """A row that cannot be used."""

    place: str
    message: str


class Pair(Frozen):
    """Two texts that were found to be the same, near, or at odds; personal data masked."""

    record: str
    other: str
    """For leaks the exam question's id."""
    text: str
    other_text: str
    method: str = ""


class Finding(Frozen):
    """A number of pairs and the first of them."""

    count: int
    first: tuple[Pair, ...]


class LengthReport(Frozen):
    """Tokens of the records, prompt and answer, at a `max_length`."""

    max_length: int
    shortest: int
    median: int
    percentile_95: int
    longest: int
    histogram: dict[int, int]
    """Upper bound in tokens to the number of records."""
    truncated: float
    """Share of the records that are longer than `max_length`, in [0, 1]; they are refused, never cut."""
    fully_masked: float
    """Share whose prompt alone fills `max_length`: cut, they would teach nothing."""


class SplitReport(Frozen):
    """Records trained on and records held out for the validation loss, topic by topic."""

    share: float
    seed: int
    training: dict[str, int]
    validation: dict[str, int]


class PrivateFinding(Frozen):
    """Something that may identify a person."""

    kind: str
    place: str
    masked: str


class PreparationReport(Frozen):
    """`preparation/report.json`."""

    schema_version: int = 1
    file: str
    read_as: str
    """Container, encoding and compression, as found by content."""
    rows: int
    records: int
    dataset_sha256: str
    formats: dict[str, int]
    """Rows of each format."""
    topics: dict[str, int]
    unused_columns: dict[str, int]
    bad_rows: int
    first_bad_rows: tuple[BadRow, ...]
    cleaned_rows: int
    """Rows with white space or characters that were normalised."""
    exact_duplicates: Finding
    near_duplicates: Finding
    contradictions: Finding
    leaks: LeakSummary | None
    leaked_texts: tuple[Pair, ...]
    lengths: LengthReport | None
    """None where they were not counted."""
    split: SplitReport
    private_data: dict[str, int]
    """Places of each kind of personal data; patterns miss much and hit some that is harmless."""
    first_private_data: tuple[PrivateFinding, ...]
    warnings: tuple[str, ...]
    errors: tuple[str, ...]


class Fault(NamedTuple):
    """A reason why the dataset is refused."""

    code: str
    message: str
    hint: str


def refuse(faults: Sequence[Fault]) -> None:
    """Raises one `InvalidInput` that tells all faults; its code is the first one's."""
    if faults:
        raise InvalidInput(
            "\n".join(fault.message for fault in faults),
            code=faults[0].code,
            hint=" ".join(dict.fromkeys(fault.hint for fault in faults)),
        )


def bad_rows(source: Source, found: Tally[Problem], records: int) -> list[Fault]:
    """Says which rows cannot be used, or that there are none."""
    path = source.path
    if not found.count:
        return [] if records else [Fault("file_empty", f"{path} holds no rows.", "Add at least one.")]
    rows = [f"{path} {source.unit} {row.number}: {row.message}." for row in found.first[:SHOWN]]
    message = "\n".join(rows) + (f"\n... and {found.count - SHOWN} more." if found.count > SHOWN else "")
    hint = f"Mend {found.count} {source.unit}(s) of {path.name} and start again; nothing was written."
    return [Fault("invalid_rows", message, hint)]


def find_faults(draft: Draft, reading: Reading) -> list[Fault]:
    """Says what speaks against a draft, whatever its lengths are."""
    path = draft.source.path
    faults = bad_rows(draft.source, draft.problems, len(draft.lines))
    if draft.repeats.repeated_ids.count:
        faults.append(_repeated_ids(draft))
    if len(draft.topics) > MAX_TOPICS:
        message = f"{path} has more than {MAX_TOPICS} topics."
        faults.append(Fault("too_many_topics", message, "Reports break down by topic: name up to a few dozen."))
    if draft.leak_summary and not reading.allow_leak:
        pairs = [
            f"{leak.record_id!r} ~ {leak.question_id!r} ({leak.method}): {_excerpt(leak.asked)!r}"
            for leak in draft.leaks[:SHOWN]
        ]
        message = f"{draft.leak_summary.records} training question(s) repeat an exam question: {_list(pairs)}"
        hint = "Take those records out of the training data, or the exam would measure memory (or --allow-leak)."
        faults.append(Fault("exam_leak", _more(message, draft.leak_summary.pairs), hint))
    if draft.repeats.contradictions.count and not reading.allow_contradictions:
        said = [
            f"{pair.record!r} ~ {pair.other!r}: {pair.text!r} / {pair.other_text!r}"
            for pair in _answers(draft.before, draft.repeats.contradictions.first[:SHOWN])
        ]
        message = f"{draft.repeats.contradictions.count} question(s) are answered in two ways: {_list(said)}"
        hint = "Keep the right answer of each, or pass --allow-contradictions if all are right."
        faults.append(Fault("contradiction", _more(message, draft.repeats.contradictions.count), hint))
    return faults


def too_long(draft: Draft, counts: Counts, max_length: int) -> list[Fault]:
    """Says which records are longer than the recipe allows."""
    whole = counts.whole
    long = np.flatnonzero(whole > max_length)
    if not len(long):
        return []
    named = ", ".join(f"{record_at(draft.lines, int(at)).id!r} ({whole[at]})" for at in long[:SHOWN])
    more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    masked_count = int((counts.prompts >= max_length).sum())
    bins = ", ".join(f"up to {bound}: {count}" for bound, count in histogram(whole, int(whole.max())).items() if count)
    message = (
        f"{len(long)} record(s) are longer than max_length {max_length} tokens: {named}{more}. "
        f"That is {len(long) / len(whole):.1%} of all; {masked_count} would lose the whole answer. Tokens: {bins}."
    )
    hint = "Shorten them or raise max_length in the recipe; cutting them would lose the answer."
    return [Fault("record_too_long", message, hint)]


def _repeated_ids(draft: Draft) -> Fault:
    repeats = draft.repeats.repeated_ids
    names = Counter(record_at(draft.before, pair.other).id for pair in repeats.first)
    told = ", ".join(f"id {name!r} is used by {count + 1} rows" for name, count in list(names.items())[:SHOWN])
    message = f"{draft.source.path}: {told}."
    return Fault("repeated_id", _more(message, repeats.count, "rows"), "Give every row its own id.")


def _list(items: Sequence[str]) -> str:
    return items[0] + "." if len(items) == 1 else "".join(f"\n  {item}" for item in items)


def _more(message: str, count: int, what: str = "pairs") -> str:
    return message + (f"\n  ... and {count - SHOWN} more {what}." if count > SHOWN else "")


def _excerpt(text: str) -> str:
    line = " ".join(masked(text).split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def _questions(lines: Lines, repeats: Sequence[Repeat]) -> tuple[Pair, ...]:
    return tuple(_pair(lines, repeat, answers=False) for repeat in repeats)


def _answers(lines: Lines, repeats: Sequence[Repeat]) -> tuple[Pair, ...]:
    return tuple(_pair(lines, repeat, answers=True) for repeat in repeats)


def _pair(lines: Lines, repeat: Repeat, *, answers: bool) -> Pair:
    one, two = record_at(lines, repeat.kept), record_at(lines, repeat.other)
    texts = [_said(record.model_dump(), answers=answers) for record in (one, two)]
    return Pair(record=one.id, other=two.id, text=_excerpt(texts[0]), other_text=_excerpt(texts[1]))


def _said(record: dict[str, object], *, answers: bool) -> str:
    """The question or the answer of a record of any kind."""
    messages, options = record.get("messages"), record.get("options")
    if isinstance(messages, list | tuple):
        turn = messages[-1 if answers else -2]
        return str(turn["content"])
    if isinstance(options, list | tuple) and isinstance(record["answer"], int):
        return str(options[record["answer"]] if answers else record["question"])
    names = ("output", "completion") if answers else ("instruction", "prompt")
    return str(record.get(names[0], record.get(names[1])))


def make_report(
    draft: Draft, counts: Counts | None, wanted: Length, reading: Reading, faults: Sequence[Fault]
) -> PreparationReport:
    """Puts everything together."""
    repeats = draft.repeats
    return PreparationReport(
        file=str(draft.source.path),
        read_as=draft.source.described(),
        rows=draft.rows_read,
        records=len(draft.lines),
        dataset_sha256=draft.sha256,
        formats=dict(draft.formats.most_common()),
        topics=dict(sorted(draft.topics.items())),
        unused_columns=dict(draft.unused.most_common(_PAIRS)),
        bad_rows=draft.problems.count,
        first_bad_rows=tuple(
            BadRow(place=f"{draft.source.unit} {row.number}", message=row.message) for row in draft.problems.first
        ),
        cleaned_rows=draft.cleaned,
        exact_duplicates=_finding(repeats.exact, _questions(draft.before, repeats.exact.first[:_PAIRS])),
        near_duplicates=_finding(repeats.near, _questions(draft.before, repeats.near.first[:_PAIRS])),
        contradictions=_finding(repeats.contradictions, _answers(draft.before, repeats.contradictions.first[:_PAIRS])),
        leaks=draft.leak_summary,
        leaked_texts=tuple(
            Pair(
                record=leak.record_id,
                other=leak.question_id,
                text=_excerpt(leak.asked),
                other_text=_excerpt(leak.examined),
                method=leak.method,
            )
            for leak in draft.leaks[:_PAIRS]
        ),
        lengths=_lengths(counts, wanted.max_length) if counts is not None and len(counts.prompts) else None,
        split=_split(draft, wanted),
        private_data=draft.privacy.counts,
        first_private_data=tuple(
            PrivateFinding(kind=found.kind, place=found.place, masked=found.masked) for found in draft.privacy.first
        ),
        warnings=tuple(_warnings(draft, reading, lengths_counted=counts is not None)),
        errors=tuple(fault.message for fault in faults),
    )


def _finding(tally: Tally[Repeat], pairs: tuple[Pair, ...]) -> Finding:
    return Finding(count=tally.count, first=pairs)


def _lengths(counts: Counts, max_length: int) -> LengthReport:
    whole = counts.whole
    return LengthReport(
        max_length=max_length,
        shortest=int(whole.min()),
        median=int(np.median(whole)),
        percentile_95=int(np.percentile(whole, 95)),
        longest=int(whole.max()),
        histogram=histogram(whole, int(whole.max())),
        truncated=float((whole > max_length).mean()),
        fully_masked=float((counts.prompts >= max_length).mean()),
    )


def _split(draft: Draft, wanted: Length) -> SplitReport:
    held = validation_rows(draft.topic_of, wanted.validation_share, wanted.seed)
    validation = Counter(draft.topic_of[at] for at in held)
    training = draft.topics - validation
    return SplitReport(
        share=wanted.validation_share,
        seed=wanted.seed,
        training=dict(sorted(training.items())),
        validation=dict(sorted(validation.items())),
    )


def _warnings(draft: Draft, reading: Reading, *, lengths_counted: bool) -> list[str]:
    said = []
    if draft.privacy.counts:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in draft.privacy.counts.items())
        first = draft.privacy.first[0]
        said.append(
            f"The records may hold personal data ({kinds}), first in {first.place}. "
            "An adapter can repeat what it was trained on: take out what must not be known."
        )
    if draft.unused:
        columns = ", ".join(repr(column) for column, _ in draft.unused.most_common(SHOWN))
        said.append(f"Not used: {columns}.")
    if draft.damaged:
        said.append(f"{draft.damaged} row(s) hold U+FFFD, which an earlier conversion left in place of a character.")
    if len(draft.formats) > 1:
        mixed = ", ".join(f"{name} {count}" for name, count in draft.formats.most_common())
        said.append(f"The file mixes formats ({mixed}); each row was read by its own.")
    # What is refused is told as an error, not once more here.
    if draft.leak_summary and reading.allow_leak:
        leaks = draft.leak_summary
        said.append(f"{leaks.questions} exam question(s) are given away by {leaks.records} record(s).")
    if draft.repeats.contradictions.count and reading.allow_contradictions:
        said.append(f"{draft.repeats.contradictions.count} question(s) are answered in two ways.")
    if not lengths_counted:
        said.append("Token lengths were not counted.")
    return said


def write_report(folder: Path, report: PreparationReport) -> None:
    """Writes `report.json` and `report.md`."""
    from preceptor_trainer.prepare.report_page import report_page

    write_atomic(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_atomic(folder / "report.md", report_page(report))
