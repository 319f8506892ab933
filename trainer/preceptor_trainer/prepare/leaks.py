"""Finds training records that give the exam away."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from preceptor_contracts.records import ChatRecord, McqQuestion, McqRecord, Question, Record, asked_text

GRAM_LIMIT = 0.6
"""Jaccard share of word 4-grams from which two questions count as the same."""
WORD_LIMIT = 0.8
"""Jaccard share of distinct words from which two questions count as the same."""
_GRAM = 4
_WORD = re.compile(r"\w+")


class Leak(NamedTuple):
    """A record and the exam question that it gives away."""

    record_id: str
    question_id: str
    gram_share: float
    """Jaccard share of word 4-grams, in [0, 1]."""
    word_share: float
    """Jaccard share of distinct words, in [0, 1]."""


class _Fingerprint(NamedTuple):
    id: str
    words: tuple[str, ...]
    distinct: frozenset[str]
    grams: frozenset[tuple[str, ...]]


def words(text: str) -> tuple[str, ...]:
    """Splits text into its words: case, punctuation and typographic variants fall away."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def find_leaks(
    records: Sequence[Record],
    questions: Sequence[Question],
    *,
    gram_limit: float = GRAM_LIMIT,
    word_limit: float = WORD_LIMIT,
) -> list[Leak]:
    """Compares every question asked in training with every exam question.

    Args:
        records: Training records; every user turn of a conversation counts.
        questions: Exam questions.
        gram_limit: Share of word 4-grams from which a pair is a leak, in [0, 1].
        word_limit: Share of distinct words from which a pair is a leak, in [0, 1].

    Returns:
        The pairs at or above a limit, in the records' order.
    """
    exam = [_fingerprint(question.id, text) for question in questions for text in _asked(question)]
    leaks: list[Leak] = []
    for record in records:
        for text in _asked(record):
            leaks += _matches(_fingerprint(record.id, text), exam, gram_limit, word_limit)
    return leaks


def _matches(asked: _Fingerprint, exam: Iterable[_Fingerprint], gram_limit: float, word_limit: float) -> Iterable[Leak]:
    for question in exam:
        gram_share = _jaccard(asked.grams, question.grams)
        word_share = _jaccard(asked.distinct, question.distinct)
        if gram_share >= gram_limit or word_share >= word_limit or asked.words == question.words:
            yield Leak(asked.id, question.id, gram_share, word_share)


def _asked(row: Record | Question) -> list[str]:
    """What a row asks; questions on different passages differ though their words may be the same."""
    if isinstance(row, ChatRecord):
        return [message.content for message in row.messages if message.role == "user"]
    if isinstance(row, McqRecord | McqQuestion) and row.passage:
        return [f"{row.passage} {row.question}"]
    return [asked_text(row)]


def _fingerprint(row_id: str, text: str) -> _Fingerprint:
    split = words(text)
    grams = frozenset(split[start : start + _GRAM] for start in range(len(split) - _GRAM + 1))
    return _Fingerprint(row_id, split, frozenset(split), grams)


def _jaccard(left: frozenset[object] | frozenset[str], right: frozenset[object] | frozenset[str]) -> float:
    if not left or not right:
        return 0.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)
