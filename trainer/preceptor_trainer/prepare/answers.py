"""Which option a multiple-choice row means by its answer: a letter, a number, or the option's text.

Numbers are settled for a whole file, because one row cannot tell: where every number is the text of one of its row's
options, they are texts; where a 0 occurs they count from 0; where the number of options occurs they count from 1; a
file that shows neither, or both, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from preceptor_contracts.mcq import LABELS

from preceptor_trainer.prepare.cleaning import folded

_LETTER = re.compile(r"^\(?([A-Ja-j])[).:]?$")
_NUMBER = re.compile(r"^(\d{1,9})(?:\.0+)?$")


class Counting(StrEnum):
    """What numbers in a file's answer column mean."""

    TEXT = "the option's text"
    ZERO = "from 0"
    ONE = "from 1"
    BOTH = "from 0 in one row and from 1 in another"
    UNKNOWN = "unknown"


class Asked(NamedTuple):
    """Options of a row, and what it says of the right one."""

    options: Sequence[str]
    answer: str
    """As text: `1` for 1, 1.0 and `1.0`."""


def settle_counting(rows: Iterable[Asked]) -> Counting:
    """Reads all rows of a file once and says what its numbers mean."""
    is_text, zero, last = True, False, False
    for options, answer in rows:
        number = _number(answer)
        if number is None:
            continue
        is_text &= _text_of(options, answer) is not None
        zero |= number == 0
        last |= number == len(options)
    if is_text:
        return Counting.TEXT
    if zero and last:
        return Counting.BOTH
    return Counting.ZERO if zero else Counting.ONE if last else Counting.UNKNOWN


def is_number(answer: str) -> bool:
    """Tells whether an answer may be an index."""
    return _number(answer) is not None


def find_answer(asked: Asked, counting: Counting) -> int:
    """Returns the 0-based index of the right option.

    Raises:
        ValueError: No reading names an option, or two readings name different ones.
    """
    options, answer = asked
    by = (_text_of(options, answer), _letter_of(options, answer), _index_of(options, answer, counting))
    readings = sorted({index for index in by if index is not None})
    if not readings:
        labels = ", ".join(LABELS[: len(options)])
        raise ValueError(f"{answer!r} is neither a letter ({labels}) nor a number nor the text of one of the options")
    if len(readings) > 1:
        both = " or ".join(str(index + 1) for index in readings)
        raise ValueError(f"{answer!r} could mean option {both}, by its text or by its place; reword the options")
    return readings[0]


def _index_of(options: Sequence[str], answer: str, counting: Counting) -> int | None:
    number = _number(answer)
    if number is None or counting is Counting.TEXT:
        return None
    if counting in (Counting.BOTH, Counting.UNKNOWN):
        why = "no row shows whether" if counting is Counting.UNKNOWN else "rows disagree whether"
        raise ValueError(f"{answer!r} is a number, and {why} this file counts from 0 or from 1; write letters")
    index = number - (counting is Counting.ONE)
    if not 0 <= index < len(options):
        raise ValueError(f"{answer!r} counts {counting.value}, as this file does, but there are {len(options)} options")
    return index


def _text_of(options: Sequence[str], answer: str) -> int | None:
    texts = [folded(option) for option in options]
    wanted = folded(answer)
    return texts.index(wanted) if texts.count(wanted) == 1 else None


def _letter_of(options: Sequence[str], answer: str) -> int | None:
    match = _LETTER.match(answer)
    index = LABELS.index(match[1].upper()) if match else len(options)
    return index if index < len(options) else None


def _number(answer: str) -> int | None:
    match = _NUMBER.match(answer)
    return int(match[1]) if match else None
