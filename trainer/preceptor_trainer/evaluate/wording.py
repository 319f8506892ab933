"""When two wordings say the same: what graders `exact` and `keypoints` compare by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u00b4`]")
# One character a word in scripts that write no spaces; numbers with their separators; words with inner apostrophes.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|\d+(?:[.,]\d+)*|%|[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[^\W_]"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NAMED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_WORDS = {word: str(number) for number, word in enumerate(_NAMED)} | {"%": "percent"}


def fold(text: str) -> str:
    """Spells a text without case, compatibility forms, odd apostrophes and surplus white space."""
    # Apostrophes first: NFKC takes an acute accent that stands for one apart.
    plain = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text))
    return " ".join(unicodedata.normalize("NFKC", plain.casefold()).split())


def same_words(expected: str, answered: str) -> bool:
    """Tells whether two answers are the same but for case, white space and a last full stop."""
    return _without_stop(expected) == _without_stop(answered)


def words(text: str) -> tuple[str, ...]:
    """Splits into words to compare by: punctuation goes, `1,000` is 1000, `2.50` is 2.5, `two` is 2, `%` is percent."""
    return tuple(_plain(word) for word in _WORD.findall(fold(text)))


def says(answer: Sequence[str], wording: Sequence[str]) -> bool:
    """Tells whether the words of `wording` stand in `answer`, in a row."""
    size = len(wording)
    return any(tuple(answer[at : at + size]) == tuple(wording) for at in range(len(answer) - size + 1))


def _without_stop(text: str) -> str:
    folded = fold(text)
    return folded[:-1].rstrip() if folded.endswith((".", "\u3002")) else folded


def _plain(word: str) -> str:
    if not _NUMBER.fullmatch(word):
        return _WORDS.get(word, word)
    if _THOUSANDS.fullmatch(word):
        word = word.replace(",", "")
    whole, point, rest = word.partition(".")
    if point and rest.isdigit():
        rest = rest.rstrip("0")
        return f"{whole}.{rest}" if rest else whole
    return word
