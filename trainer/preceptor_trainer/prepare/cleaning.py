"""Text as it should be trained on: one spelling of each character, and nothing that cannot be seen.

Only what no reader could tell apart is changed. White space inside a text stays, for code and tables live from it, and
compatibility characters do too: NFKC would turn m² into m2.
"""

from __future__ import annotations

import re
import unicodedata

# Zero-width space, word joiner, byte-order mark, soft hyphen. Joiners stay: emoji and Persian need them.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SPACES = re.compile("[\u00a0\u2007\u202f]")
_BREAKS = re.compile("\r\n?|\u0085|\u2028|\u2029")
_BEFORE_BREAK = re.compile("[ \t]+(?=\n)")
HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can spell it, UTF-8 cannot."""


def clean_text(text: str) -> str:
    """Normalises one text: NFC, line feeds, plain spaces, no invisible or control characters, no white space around."""
    if not text.isascii():
        text = _INVISIBLE.sub("", _SPACES.sub(" ", unicodedata.normalize("NFC", text)))
    text = _CONTROL.sub("", _BREAKS.sub("\n", text))
    return _BEFORE_BREAK.sub("", text).strip()


def clean(value: object) -> object:
    """Normalises every text inside a JSON value; keys stay."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return value


def folded(text: str) -> str:
    """What two texts have in common that differ in case, white space and a last full stop only."""
    return " ".join(text.casefold().split()).removesuffix(".")
