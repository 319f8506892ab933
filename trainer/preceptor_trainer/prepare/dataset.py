"""Stage prepare: a file of records becomes a checked, deduplicated, tokenised dataset, or a list of what is wrong."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import Domain, DomainFolder
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import canonical_json, sha256_bytes
from preceptor_contracts.frozen import Frozen, read_jsonl
from preceptor_contracts.manifest import DatasetSummary
from preceptor_contracts.records import QUESTIONS, RECORDS, Example, Question, Record, to_example

from preceptor_trainer.evaluate.questions import check_questions
from preceptor_trainer.prepare.leaks import Leak, find_leaks
from preceptor_trainer.tokens import TokenisedExample, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5


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
    """What stage prepare found."""

    dataset: DatasetSummary
    lengths: Lengths


class Dataset(NamedTuple):
    """Records ready to train on."""

    records: tuple[Record, ...]
    examples: tuple[Example, ...]
    tokenised: tuple[TokenisedExample, ...]
    text: str
    """Canonical JSONL; its SHA-256 is the dataset's name."""
    duplicates_removed: int

    def summary(self) -> Prepared:
        """Counts what is in it."""
        lengths = [example.length for example in self.tokenised]
        dataset = DatasetSummary(
            sha256=sha256_bytes(self.text.encode()),
            records=len(self.records),
            tokens=sum(lengths),
            topics=dict(sorted(Counter(record.topic for record in self.records).items())),
            duplicates_removed=self.duplicates_removed,
        )
        return Prepared(
            dataset=dataset,
            lengths=Lengths(
                shortest=min(lengths),
                median=int(statistics.median(lengths)),
                longest=max(lengths),
                answer_tokens=sum(len(example.answer_ids) for example in self.tokenised),
                shared=_shared([example.prompt_ids for example in self.tokenised]),
            ),
        )


def _shared(prompts: list[list[int]]) -> int:
    """The beginning that all have in common; the least and the greatest differ no later than any other two."""
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(prompts), max(prompts), strict=False))
    )


def read_records(path: Path) -> tuple[Record, ...]:
    """Reads training records.

    Raises:
        InvalidInput: Bad rows, each with line and field, or an id used twice.
    """
    records = read_jsonl(path, RECORDS)
    _refuse_repeated_ids(path, [record.id for record in records])
    return records


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
    _refuse_repeated_ids(exam, [question.id for question in questions])
    check_questions(folder.domain, questions, exam)
    return questions


def prepare(
    domain: Domain,
    records: Sequence[Record],
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> Dataset:
    """Deduplicates, checks and tokenises records; writes nothing.

    Args:
        domain: Renders the records.
        records: As read.
        questions: The exam, which no record may give away.
        tokenizer: The base model's.
        max_length: Longest record allowed, in tokens.

    Raises:
        InvalidInput: A record leaks the exam, is too long, or does not fit the chat template.
    """
    refuse_leaks(find_leaks(records, questions))
    kept = _without_duplicates(domain, records)
    examples = tuple(to_example(domain, record) for record in kept)
    tokenised = tuple(tokenise(tokenizer, example, record.id) for record, example in zip(kept, examples, strict=True))
    _refuse_too_long(tokenised, max_length)
    text = "".join(canonical_json(record.model_dump(mode="json")) + "\n" for record in kept)
    return Dataset(kept, examples, tokenised, text, len(records) - len(kept))


def reload(domain: Domain, path: Path, tokenizer: PreTrainedTokenizerBase, *, expected_sha: str) -> Dataset:
    """Reads a run's dataset again, which was checked when the run was made.

    Raises:
        InvalidInput: The file was altered since.
    """
    records = read_jsonl(path, RECORDS)
    text = path.read_text(encoding="utf-8")
    if sha256_bytes(text.encode()) != expected_sha:
        raise InvalidInput(f"{path} was altered after its run was made.", hint="Start a new run.")
    examples = tuple(to_example(domain, record) for record in records)
    tokenised = tuple(
        tokenise(tokenizer, example, record.id) for record, example in zip(records, examples, strict=True)
    )
    return Dataset(records, examples, tokenised, text, 0)


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Raises `InvalidInput` naming record and question of the first few leaks."""
    if leaks:
        pairs = ", ".join(f"{leak.record_id!r} ~ {leak.question_id!r}" for leak in leaks[:_SHOWN])
        more = f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        raise InvalidInput(
            f"{len(leaks)} training question(s) repeat an exam question: {pairs}{more}.",
            code="exam_leak",
            hint="Take those records out of the training data, or the exam would measure memory.",
        )


def _without_duplicates(domain: Domain, records: Sequence[Record]) -> tuple[Record, ...]:
    kept: dict[tuple[str, ...], Record] = {}
    for record in records:
        example = to_example(domain, record)
        texts = (*(message.content for message in example.prompt), example.answer)
        kept.setdefault(tuple(" ".join(text.casefold().split()) for text in texts), record)
    return tuple(kept.values())


def _refuse_too_long(tokenised: Sequence[TokenisedExample], max_length: int) -> None:
    long = [example for example in tokenised if example.length > max_length]
    if long:
        named = ", ".join(f"{example.record_id!r} ({example.length})" for example in long[:_SHOWN])
        more = f" and {len(long) - _SHOWN} more" if len(long) > _SHOWN else ""
        raise InvalidInput(
            f"{len(long)} record(s) are longer than max_length {max_length} tokens: {named}{more}.",
            code="record_too_long",
            hint="Shorten them or raise max_length in the recipe; cutting them would lose the answer.",
        )


def _refuse_repeated_ids(path: Path, ids: Sequence[str]) -> None:
    repeated = [row_id for row_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InvalidInput(
            f"{path}: id {repeated[0]!r} is used by {ids.count(repeated[0])} rows.", hint="Give every row its own id."
        )
