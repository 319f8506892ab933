"""Records that say the same again, and records that contradict each other, found among any number of them.

Of each record a few hashes are kept (40 bytes in memory, 96 on disk), and texts are read again only where those agree.

A near duplicate has the same answer, the same numbers, names, quotations, negations and symbols, and all but the same
words: a Jaccard share of word pairs of 0.8, which is one word in twenty. Short questions are therefore near duplicates
only when their words are the same, and templated questions with other literals never are. Of the shipped domains
(allergy with paraphrases of each fact, sql with templates) no two records with one answer come above 0.34.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from preceptor_contracts.records import RECORDS, ChatRecord, Example, McqRecord, Record, asked_text

from preceptor_trainer.prepare.cleaning import folded
from preceptor_trainer.prepare.leaks import jaccard, question_part, words
from preceptor_trainer.prepare.lines import Lines
from preceptor_trainer.prepare.tally import Tally

NEAR_LIMIT = 0.8
"""Jaccard share of word pairs from which two records with the same answer are near duplicates."""
_BANDS, _ROWS = 12, 5
"""Pairs at the limit meet in one band with probability 1 - (1 - 0.8^5)^12 = 0.99."""
_REPRESENTATIVES = 4
_SEED = 1
# What a question lives by though it is one word of many: numbers, symbols, quotations, negations, names.
_LITERAL = re.compile(
    r"\d+(?:[.,]\d+)*|[<>=+*/%^&|~$#@\\]+|\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|`[^`]*`"
    r"|\b(?:no|not|never|none|without|except|nor|\w+n't)\b|(?<=[\w,;:] )[A-Z]\w*"
)


class Repeat(NamedTuple):
    """Two records, by position, the earlier one first."""

    kept: int
    other: int


class Repeats(NamedTuple):
    """What was found among all records."""

    dropped: NDArray[np.bool_]
    """By position."""
    exact: Tally[Repeat]
    near: Tally[Repeat]
    contradictions: Tally[Repeat]
    """Records that ask the same and answer differently."""
    repeated_ids: Tally[Repeat]


class Fingerprints:
    """Hashes of the records, in the order that they are added.

    Args:
        folder: For the file of MinHash bands, which is removed with the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bands.u64"
        self._stream = self._path.open("wb")
        self._rendered = bytearray()
        self._questions, self._answers, self._ids = array("Q"), array("Q"), array("Q")
        self._sign = _signer()

    def add(self, record: Record, example: Example) -> None:
        """Takes one more record."""
        rendered = "\0".join(folded(text) for text in (*(turn.content for turn in example.prompt), example.answer))
        # The letter of an option depends on the options' order; its text does not.
        answer = folded(record.options[record.answer] if isinstance(record, McqRecord) else example.answer)
        self._rendered += blake2b(rendered.encode(), digest_size=16).digest()
        self._questions.append(_hash(question_key(record, example)))
        self._answers.append(_hash(answer))
        self._ids.append(_hash(record.id))
        text = _asked_whole(record)
        salt = _hash("\0".join([answer, *sorted(_LITERAL.findall(text))]))
        self._stream.write(self._sign(_shingles(text), salt))

    def close(self) -> None:
        """Ends the writing."""
        self._stream.close()

    def find(self, lines: Lines, render: Callable[[Record], Example]) -> Repeats:
        """Finds repeats and contradictions.

        Args:
            lines: The records as JSON, in the order that they were added.
            render: Makes an example of a record.
        """
        self.close()
        dropped = np.zeros(len(lines), dtype=np.bool_)
        exact = self._exact(dropped)
        near = self._near(lines, dropped)
        kept = np.flatnonzero(~dropped)
        return Repeats(dropped, exact, near, self._contradictions(lines, kept, render), self._repeated_ids(kept))

    def _exact(self, dropped: NDArray[np.bool_]) -> Tally[Repeat]:
        found: Tally[Repeat] = Tally()
        pairs = np.frombuffer(self._rendered, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        ranked = pairs[order]
        for begin, end in _runs((ranked[1:] == ranked[:-1]).all(axis=1)):
            first, *others = (int(at) for at in order[begin:end])
            for other in others:
                dropped[other] = True
                found.add(Repeat(first, other))
        return found

    def _near(self, lines: Lines, dropped: NDArray[np.bool_]) -> Tally[Repeat]:
        found: Tally[Repeat] = Tally()
        if not len(lines):
            return found
        bands = np.memmap(self._path, dtype=np.uint64, mode="r").reshape(-1, _BANDS)

        @lru_cache(maxsize=4096)
        def shingles(at: int) -> tuple[frozenset[bytes], frozenset[bytes]]:
            record = RECORDS.validate_json(lines[at])
            return frozenset(_shingles(_asked_whole(record))), frozenset(_shingles(question_part(record)))

        def alike(one: int, two: int) -> bool:
            # Two questions on one long passage share most of their words and are two questions all the same.
            return all(jaccard(*pair) >= NEAR_LIMIT for pair in zip(shingles(one), shingles(two), strict=True))

        for band in range(_BANDS):
            keys = np.array(bands[:, band])
            order = np.argsort(keys, kind="stable")
            ranked = keys[order]
            for begin, end in _runs(ranked[1:] == ranked[:-1]):
                standing: list[int] = []
                for at in (int(at) for at in order[begin:end] if not dropped[at]):
                    like = next((one for one in standing if alike(one, at)), None)
                    if like is not None:
                        dropped[at] = True
                        found.add(Repeat(like, at))
                    elif len(standing) < _REPRESENTATIVES:
                        standing.append(at)
        return found

    def _contradictions(
        self, lines: Lines, kept: NDArray[np.intp], render: Callable[[Record], Example]
    ) -> Tally[Repeat]:
        found: Tally[Repeat] = Tally()
        questions = np.frombuffer(self._questions, dtype=np.uint64)[kept]
        answers = np.frombuffer(self._answers, dtype=np.uint64)[kept]
        order = np.argsort(questions, kind="stable")
        ranked = questions[order]

        def key(at: int) -> str:
            record = RECORDS.validate_json(lines[at])
            return question_key(record, render(record))

        for begin, end in _runs(ranked[1:] == ranked[:-1]):
            first, *others = (int(at) for at in order[begin:end])
            for other in others:
                one, two = int(kept[first]), int(kept[other])
                if answers[other] != answers[first] and key(one) == key(two):
                    found.add(Repeat(one, two))
        return found

    def _repeated_ids(self, kept: NDArray[np.intp]) -> Tally[Repeat]:
        found: Tally[Repeat] = Tally()
        ids = np.frombuffer(self._ids, dtype=np.uint64)[kept]
        order = np.argsort(ids, kind="stable")
        ranked = ids[order]
        for begin, end in _runs(ranked[1:] == ranked[:-1]):
            first, *others = (int(kept[at]) for at in order[begin:end])
            for other in others:
                found.add(Repeat(first, other))
        return found


def question_key(record: Record, example: Example) -> str:
    """What a record asks, options included but not their order; case and white space do not count."""
    if isinstance(record, McqRecord):
        options = sorted(folded(option) for option in record.options)
        return "\0".join([folded(record.passage), folded(record.question), *options])
    return "\0".join(folded(message.content) for message in example.prompt)


def _asked_whole(record: Record) -> str:
    if isinstance(record, ChatRecord):
        return "\n".join(message.content for message in record.messages[:-1])
    if isinstance(record, McqRecord):
        return "\n".join([record.passage, record.question, *sorted(record.options)])
    return asked_text(record)


def _shingles(text: str) -> list[bytes]:
    """Word pairs; a single word is its own."""
    split = words(text)
    if len(split) < 2:
        return [text.encode()] if not split else [split[0].encode()]
    return [f"{left} {right}".encode() for left, right in pairwise(split)]


def _signer() -> Callable[[list[bytes], int], bytes]:
    """Makes MinHash signatures in bands; records whose salts differ meet in none."""
    from zlib import crc32

    from datasketch import MinHash

    blank = MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, hashfunc=crc32)
    # Odd factors, the same in every process; sums of products wrap at 64 bits, which is what hashing wants.
    factors = np.random.default_rng(_SEED).integers(1, 2**63, size=_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def sign(shingles: list[bytes], salt: int) -> bytes:
        minhash = blank.copy()
        minhash.update_batch(shingles)
        rows = np.asarray(minhash.hashvalues, dtype=np.uint64).reshape(_BANDS, _ROWS)
        bands: NDArray[np.uint64] = (rows * factors).sum(axis=1, dtype=np.uint64) ^ np.uint64(salt)
        return bands.tobytes()

    return sign


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _runs(same: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of equal neighbours; `same[i]` compares i with i + 1."""
    edges = np.diff(np.concatenate(([False], same, [False])).astype(np.int8))
    for begin, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        yield int(begin), int(end) + 1
