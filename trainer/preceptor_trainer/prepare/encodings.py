"""What the bytes of a text file mean. UTF-8, or UTF-16 and UTF-32 by their marks; anything older must be named.

Guessing among the 8-bit encodings is not left to statistics: on a short German CSV charset-normalizer says Big5, and a
wrong guess would be trained on. Its candidates are shown instead, as they would read.
"""

from __future__ import annotations

import codecs
from typing import BinaryIO

from preceptor_contracts.errors import InvalidInput

from preceptor_trainer.prepare.privacy import masked

_CHUNK = 1 << 20
_HEAD = 4096
_SAMPLE = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16: the little-endian mark of UTF-32 begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def require_encoding(name: str) -> str:
    """Returns an encoding's proper name.

    Raises:
        InvalidInput: Python does not know it, or it is none of text.
    """
    try:
        found = codecs.lookup(name)
        b"".decode(found.name)
    except LookupError as error:
        raise InvalidInput(
            f"There is no encoding {name!r}.", code="unknown_encoding", hint="Common ones: utf-8, cp1252, utf-16."
        ) from error
    # Excel's "CSV UTF-8" begins with a mark; without one this reads the same.
    return "utf-8-sig" if found.name == "utf-8" else found.name


def detect_encoding(stream: BinaryIO, name: str) -> str:
    """Reads the whole stream once, in small pieces, and says what it is written in.

    Args:
        stream: At its beginning.
        name: The file, for messages.

    Raises:
        InvalidInput: It is binary, damaged UTF-8, or in an encoding that must be named.
    """
    head = stream.read(_HEAD)
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        return _without_mark(head, name)
    decoder, lines, chunk = codecs.getincrementaldecoder("utf-8")(), 1, head
    while True:
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # The decoder may have kept a byte or three of the piece before.
            data, at = bytes(error.object), error.start
            raise _not_utf8(name, data + stream.read(_SAMPLE), at, lines + data.count(b"\n", 0, at)) from None
        if not chunk:
            return "utf-8"
        lines += chunk.count(b"\n")
        chunk = stream.read(_CHUNK)


def _without_mark(head: bytes, name: str) -> str:
    """UTF-16 without its mark: plain letters have a zero in every second byte."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    if odd > 0.3 * half and not even:
        return "utf-16-le"
    if even > 0.3 * half and not odd:
        return "utf-16-be"
    raise InvalidInput(
        f"{name} is a binary file: it holds zero bytes and is not Parquet.",
        code="binary_file",
        hint="Save the rows as JSONL, CSV (UTF-8) or Parquet.",
    )


def _not_utf8(name: str, data: bytes, at: int, line: int) -> InvalidInput:
    sample = data[max(0, at - _SAMPLE) : at + _SAMPLE]
    right = sum(not character.isascii() for character in sample.decode("utf-8", errors="ignore"))
    wrong = sample.decode("utf-8", errors="replace").count("\ufffd")
    if right > wrong:
        return InvalidInput(
            f"{name} line {line}: byte {data[at]:#04x} is not UTF-8, though the text around it is.",
            code="not_utf8",
            hint="Correct that line; two files in different encodings may have been joined.",
        )
    begin = data.rfind(b"\n", 0, at) + 1
    end = data.find(b"\n", at)
    shown = data[max(begin, at - 30) : (end if end >= 0 else len(data))][:60]
    return InvalidInput(
        f"{name} line {line} is not UTF-8. {_candidates(shown, sample)}",
        code="not_utf8",
        hint="Name the encoding that reads right, e.g. --encoding cp1252, or save the file as UTF-8.",
    )


def _candidates(shown: bytes, sample: bytes) -> str:
    from charset_normalizer import from_bytes

    names = dict.fromkeys(["cp1252", *(match.encoding for match in list(from_bytes(sample))[:2])])
    readings = {name: masked(shown.decode(name, errors="replace").strip()) for name in names}
    return "It would read " + ", ".join(f"{text!r} as {name}" for name, text in readings.items()) + "."
