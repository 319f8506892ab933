"""Candidates and the files that remember them: append-only, readable after a kill at any moment."""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar

from preceptor_contracts.files import Sha256, canonical_json, sha256_bytes
from preceptor_contracts.frozen import Frozen, describe
from preceptor_contracts.records import RECORDS, Record
from pydantic import JsonValue, ValidationError

from preceptor_trainer.generate.prompting import Job, Kind, McqItem, OpenItem, item_shape
from preceptor_trainer.locks import only_one
from preceptor_trainer.prepare.leaks import words

SOURCE = "generated"
"""`source` of every generated record."""
_FEWEST_WORDS = 3
"""Words that a quotation needs to be evidence of anything."""
_PLAIN = str.maketrans("\u2018\u2019\u201a\u201c\u201d\u201e\u2010\u2011\u2013\u2014", "'''\"\"\"----")


class Support(StrEnum):
    """Whether a candidate's evidence stands in its document."""

    QUOTED = "quoted"
    UNSUPPORTED = "unsupported"
    """The quotation is not in the chunk: made up, or altered."""
    NO_DOCUMENT = "no document"
    """Made of a topic: rests on what the generator knows."""


class Candidate(Frozen):
    """A record that nobody has reviewed yet."""

    record: Record
    evidence: str
    support: Support


class Answered(Frozen):
    """One line of `candidates.jsonl`: a request that was answered, or given up."""

    job: Sha256
    """Of all that was sent."""
    chunk_sha: str
    """Of the document's chunk; empty for a topic."""
    origin: str
    kind: Kind
    host: str
    served: str
    """Served name that was asked."""
    method: str
    """How structured output was asked for."""
    asked: int
    """Times that the request was sent until an answer could be used."""
    prompt_tokens: int
    answer_tokens: int
    at: datetime
    candidates: tuple[Candidate, ...] = ()
    dropped: tuple[str, ...] = ()
    """Why some questions of the answer could not be used."""
    failure: str = ""
    """Why the request was given up; then there are no candidates."""


class Decision(Frozen):
    """One line of `decisions.jsonl`: what became of a candidate. It is not proposed again."""

    id: str
    verdict: str
    """`accepted`, `rejected` or `repeats`."""
    into: str = ""
    """File that an accepted record was appended to."""
    at: datetime


Line = TypeVar("Line", bound=Frozen)


class Lines(NamedTuple):
    """What the files of a `WorkDir` hold."""

    answered: tuple[Answered, ...]
    decisions: tuple[Decision, ...]
    unreadable: int
    """Half-written and foreign lines, which are passed over: what they told is asked again."""


class WorkDir:
    """`data/generated/<domain>/`: what one domain's generator answered, and what people decided."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.candidates = path / "candidates.jsonl"
        self.decisions = path / "decisions.jsonl"
        self.review = path / "review.csv"

    def read(self) -> Lines:
        """Reads both files."""
        answered, bad_answers = _read(self.candidates, Answered)
        decisions, bad_decisions = _read(self.decisions, Decision)
        return Lines(answered, decisions, bad_answers + bad_decisions)

    def remember(self, line: Answered | Decision) -> None:
        """Appends one line and syncs it."""
        path = self.candidates if isinstance(line, Answered) else self.decisions
        text = line.model_dump_json() + "\n"
        with path.open("ab+") as stream:
            # A kill may have left half a line; without a break, this one would be lost with it.
            end = stream.seek(0, os.SEEK_END)
            if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                text = "\n" + text
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Makes the folder and keeps a second process out of it; the kernel frees it when this one dies.

        Raises:
            PreceptorError: Another process is at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with only_one(self.path, doing=f"working in {self.path}", code="generate_busy"):
            yield


def _read(path: Path, kind: type[Line]) -> tuple[tuple[Line, ...], int]:
    if not path.is_file():
        return (), 0
    lines: list[Line] = []
    unreadable = 0
    for raw in path.read_bytes().split(b"\n"):
        if not raw.strip():
            continue
        try:
            lines.append(kind.model_validate_json(raw))
        except ValidationError:
            unreadable += 1
    return tuple(lines), unreadable


def make_candidate(domain: str, job: Job, written: JsonValue) -> Candidate | str:
    """Makes a candidate of one question that the generator wrote, or says why none can be made."""
    try:
        item = item_shape(job.kind).model_validate(written)
        fields = _record_fields(job.kind, item, _name(domain, job.kind, item))
        record = RECORDS.validate_python(
            {**fields, "topic": job.source.topic or " ".join(item.topic.casefold().split())}
        )
    except ValidationError as error:
        return describe(error)
    return Candidate(record=record, evidence=item.evidence.strip(), support=_support(item.evidence, job.source.text))


def _name(domain: str, kind: Kind, item: OpenItem) -> str:
    """The same words make the same id, whenever and by whomever they are written."""
    told = canonical_json([kind, words(item.question), words(item.answer)])
    return f"gen-{domain}-{sha256_bytes(told.encode())[:12]}"


def _record_fields(kind: Kind, item: OpenItem, name: str) -> dict[str, object]:
    shared: dict[str, object] = {"id": name, "kind": kind.value, "source": SOURCE}
    question, answer = item.question.strip(), item.answer.strip()
    if isinstance(item, McqItem):
        options = [answer, *(option.strip() for option in item.wrong)]
        # Seeded by the id: the right answer stands anywhere, and in the same place whenever the line is made again.
        random.Random(name).shuffle(options)
        return {**shared, "question": question, "options": options, "answer": options.index(answer)}
    if kind is Kind.PROMPT_COMPLETION:
        return {**shared, "prompt": question, "completion": answer}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {**shared, "messages": turns}


def _support(evidence: str, chunk: str) -> Support:
    if not chunk:
        return Support.NO_DOCUMENT
    is_quoted = len(words(evidence)) >= _FEWEST_WORDS and _folded(evidence) in _folded(chunk)
    return Support.QUOTED if is_quoted else Support.UNSUPPORTED


def _folded(text: str) -> str:
    """White space, case and typographic variants fall away: they are no reason to distrust a quotation."""
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN).casefold()
    return re.sub(r"\s+", " ", plain).strip().strip("\"'")
