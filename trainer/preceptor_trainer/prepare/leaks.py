"""Finds training records that give the exam away.

The exam is small and the records may be many, so the exam is indexed by its rare words and every record is looked up.
Two sets of which at least a share t is common must share one of each other's |x| - ceil(t |x|) + 1 rarest members
(prefix filtering: Chaudhuri et al., A Primitive Operator for Similarity Joins, 2006); all else is never compared.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from preceptor_contracts.manifest import LeakedPair, LeakSummary
from preceptor_contracts.records import (
    ChatRecord,
    InstructionRecord,
    McqQuestion,
    McqRecord,
    PromptCompletionRecord,
    Question,
    Record,
    asked_text,
)

GRAM_LIMIT = 0.6
"""Jaccard share of word 4-grams from which two questions count as the same."""
WORD_LIMIT = 0.8
"""Jaccard share of distinct words from which two questions count as the same."""
CONTAINED_LIMIT = 0.8
"""Share of an exam question's word 4-grams from which a record that holds them gives it away."""
CONTAINED_WORDS = 8
"""Shorter questions are not looked for inside longer texts: their words meet by chance."""
_GRAM = 4
_OTHER_ANSWER, _OTHER_OPTIONS = 0.2, 0.5
"""Shares of words below which right options, and all options, are others."""
_KEPT, _IN_MANIFEST, _EXCERPT = 200, 20, 300
# A script without spaces has no words to split at; there each character counts as one.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
Method = Literal["exact", "near", "ngram"]


class Leak(NamedTuple):
    """A record and the exam question that it gives away."""

    record_id: str
    question_id: str
    gram_share: float
    """Jaccard share of word 4-grams, in [0, 1]."""
    word_share: float
    """Jaccard share of distinct words, in [0, 1]."""
    method: Method = "near"
    """`exact` is the same words in the same order, `ngram` an exam question inside a longer text."""
    asked: str = ""
    """What the record asks."""
    examined: str = ""
    """What the exam asks."""


class LeakTally:
    """Leaks of any number of records: 12 bytes each, and the first of them whole."""

    def __init__(self) -> None:
        self._records, self._questions = array("Q"), array("I")
        self._numbers: dict[str, int] = {}
        self._first: list[tuple[int, Leak]] = []

    def add(self, position: int, leak: Leak) -> None:
        """Counts one leak of the record at a position."""
        self._records.append(position)
        self._questions.append(self._numbers.setdefault(leak.question_id, len(self._numbers)))
        if len(self._first) < _KEPT:
            short = leak._replace(asked=leak.asked[:_EXCERPT], examined=leak.examined[:_EXCERPT])
            self._first.append((position, short))

    def among(self, dropped: NDArray[np.bool_]) -> tuple[list[Leak], LeakSummary | None]:
        """Returns the first leaks of records that were not dropped, and a summary of all of these."""
        records = np.frombuffer(self._records, dtype=np.uint64).astype(np.int64)
        stays = ~dropped[records]
        first = [leak for position, leak in self._first if not dropped[position]]
        if not stays.any():
            return [], None
        summary = LeakSummary(
            pairs=int(stays.sum()),
            records=len(np.unique(records[stays])),
            questions=len(np.unique(np.frombuffer(self._questions, dtype=np.uint32)[stays])),
            first=tuple(
                LeakedPair(
                    record=leak.record_id,
                    question=leak.question_id,
                    method=leak.method,
                    share=round(max(leak.gram_share, leak.word_share), 3),
                )
                for leak in first[:_IN_MANIFEST]
            ),
        )
        return first, summary


class _Fingerprint(NamedTuple):
    id: str
    text: str
    words: tuple[str, ...]
    distinct: frozenset[str]
    grams: frozenset[tuple[str, ...]]
    question: frozenset[str]
    """Words of the question alone, without the passage or context before it."""
    options: tuple[frozenset[str], frozenset[str]] | None
    """Multiple choice: words of the right option, and of all."""


def words(text: str) -> tuple[str, ...]:
    """Splits text into its words: case, punctuation and typographic variants fall away."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def jaccard(left: frozenset[Hashable], right: frozenset[Hashable]) -> float:
    """Share of the members of two sets that both have, in [0, 1]; 0 where one is empty."""
    if not left or not right:
        return 0.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class ExamIndex:
    """An exam, ready to be compared with any number of records.

    Args:
        questions: The exam.
        gram_limit: Share of word 4-grams from which a pair is a leak, in (0, 1].
        word_limit: Share of distinct words from which a pair is a leak, in (0, 1].
    """

    def __init__(
        self, questions: Sequence[Question], *, gram_limit: float = GRAM_LIMIT, word_limit: float = WORD_LIMIT
    ) -> None:
        self._exam = [_fingerprint(question, text) for question in questions for text in _asked(question)]
        self._limits = gram_limit, word_limit
        self._exact: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for at, question in enumerate(self._exam):
            self._exact[question.words].append(at)
        self._by_word = _Prefixes([question.distinct for question in self._exam], word_limit)
        self._by_gram = _Prefixes([question.grams for question in self._exam], gram_limit)
        self._holding: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for at, question in enumerate(self._exam):
            if len(question.words) >= CONTAINED_WORDS:
                for gram in question.grams:
                    self._holding[gram].append(at)
        self._first_words = {gram[0] for gram in self._holding}

    def leaks(self, record: Record) -> list[Leak]:
        """Returns the questions that a record gives away, each once, exact ones first."""
        found: dict[str, Leak] = {}
        for text in _asked(record):
            asked = _fingerprint(record, text)
            for leak in self._same(asked):
                found.setdefault(leak.question_id, leak)
        for leak in self._inside(record):
            found.setdefault(leak.question_id, leak)
        return sorted(found.values(), key=lambda leak: leak.method)

    def _same(self, asked: _Fingerprint) -> Iterator[Leak]:
        gram_limit, word_limit = self._limits
        candidates = {*self._exact.get(asked.words, ()), *self._by_word.near(asked.distinct)}
        for at in sorted(candidates | self._by_gram.near(asked.grams)):
            question = self._exam[at]
            gram_share = jaccard(asked.grams, question.grams)
            word_share = jaccard(asked.distinct, question.distinct)
            is_exact = asked.words == question.words
            if not _ask_one_thing(asked, question, word_limit):
                continue
            if is_exact or gram_share >= gram_limit or word_share >= word_limit:
                method: Method = "exact" if is_exact else "near"
                yield Leak(asked.id, question.id, gram_share, word_share, method, asked.text, question.text)

    def _inside(self, record: Record) -> Iterator[Leak]:
        """Looks for exam questions inside everything that the record says."""
        if not self._holding:
            return
        text = _all_text(record)
        split = words(text)
        starts = (start for start, word in enumerate(split) if word in self._first_words)
        grams = {split[start : start + _GRAM] for start in starts} & self._holding.keys()
        counts = Counter(at for gram in grams for at in self._holding[gram])
        for at, shared in sorted(counts.items()):
            question = self._exam[at]
            if shared >= CONTAINED_LIMIT * len(question.grams):
                whole = _fingerprint(record, text)
                # A passage that both share is most of the text, and asks nothing.
                if len(question.question & whole.distinct) < CONTAINED_LIMIT * len(question.question):
                    continue
                gram_share, word_share = (
                    jaccard(whole.grams, question.grams),
                    jaccard(whole.distinct, question.distinct),
                )
                yield Leak(record.id, question.id, gram_share, word_share, "ngram", text, question.text)


class _Prefixes:
    """Sets by their rarest members."""

    def __init__(self, sets: Sequence[frozenset[Hashable]], limit: float) -> None:
        self._limit = limit
        self._counts = Counter(member for members in sets for member in members)
        self._index: defaultdict[Hashable, list[int]] = defaultdict(list)
        for at, members in enumerate(sets):
            for member in self._prefix(members):
                self._index[member].append(at)

    def near(self, members: frozenset[Hashable]) -> set[int]:
        """Positions of all sets that can reach the limit with this one."""
        return {at for member in self._prefix(members) for at in self._index.get(member, ())}

    def _prefix(self, members: frozenset[Hashable]) -> list[Hashable]:
        # The small subtraction keeps 0.8 * 5 from being taken for a little more than 4.
        length = len(members) - math.ceil(self._limit * len(members) - 1e-9) + 1
        # Members that the exam does not have are the rarest of all, and lead nowhere.
        known = members & self._counts.keys()
        length -= len(members) - len(known)
        if length <= 0:
            return []
        return sorted(known, key=lambda member: (self._counts[member], repr(member)))[:length]


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
        gram_limit: Share of word 4-grams from which a pair is a leak, in (0, 1].
        word_limit: Share of distinct words from which a pair is a leak, in (0, 1].

    Returns:
        The pairs at or above a limit, in the records' order.
    """
    index = ExamIndex(questions, gram_limit=gram_limit, word_limit=word_limit)
    return [leak for record in records for leak in index.leaks(record)]


def _ask_one_thing(asked: _Fingerprint, question: _Fingerprint, limit: float) -> bool:
    """Tells apart rows that share a passage but no question, or a stem ("Which is true?") but no option."""
    if asked.options and question.options:
        right, all_options = (
            jaccard(mine, theirs) for mine, theirs in zip(asked.options, question.options, strict=True)
        )
        if right < _OTHER_ANSWER and all_options < _OTHER_OPTIONS:
            return False
    has_context = asked.question != asked.distinct or question.question != question.distinct
    return not has_context or jaccard(asked.question, question.question) >= limit


def _asked(row: Record | Question) -> list[str]:
    """What a row asks; questions on different passages differ though their words may be the same.

    A record may put its question behind an instruction or a context: each paragraph of it is looked at by itself too.
    """
    if isinstance(row, ChatRecord):
        said = [message.content for message in row.messages if message.role == "user"]
        return [*said, *(part for text in said for part in _paragraphs(text))]
    if isinstance(row, McqRecord | McqQuestion):
        return [f"{row.passage} {row.question}" if row.passage else row.question]
    if isinstance(row, InstructionRecord):
        given = [row.input] if row.input.strip() else []
        return [asked_text(row), *given, *_paragraphs(row.instruction), *_paragraphs(row.input)]
    if isinstance(row, PromptCompletionRecord):
        return [row.prompt, *_paragraphs(row.prompt)]
    return [asked_text(row)]


def _paragraphs(text: str) -> list[str]:
    """The lines of a text that has several."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else []


def question_part(row: Record | Question) -> str:
    """The question alone: of multiple choice without the passage, else the last paragraph."""
    if isinstance(row, McqRecord | McqQuestion):
        return row.question
    return asked_text(row).rstrip().rpartition("\n\n")[2]


def _options_of(row: Record | Question) -> tuple[frozenset[str], frozenset[str]] | None:
    if not isinstance(row, McqRecord | McqQuestion):
        return None
    return frozenset(words(row.options[row.answer])), frozenset(words(" ".join(row.options)))


def _all_text(record: Record) -> str:
    if isinstance(record, ChatRecord):
        return "\n".join(message.content for message in record.messages)
    if isinstance(record, McqRecord):
        return "\n".join([record.passage, record.question, *record.options])
    answer = record.output if record.kind == "instruction" else record.completion
    return f"{asked_text(record)}\n{answer}"


def _fingerprint(row: Record | Question, text: str) -> _Fingerprint:
    split = words(text)
    grams = frozenset(split[start : start + _GRAM] for start in range(len(split) - _GRAM + 1))
    distinct = frozenset(words(question_part(row))) & frozenset(split) or frozenset(split)
    return _Fingerprint(row.id, text, split, frozenset(split), grams, distinct, _options_of(row))
