"""A JSON array read element by element, so that an export of any size fits in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

_CHUNK = 1 << 16
_SPACE = " \t\r\n"


def array_elements(text: TextIO, limit: int) -> Iterator[tuple[int, object]]:
    """Yields each element with the line that it begins on.

    Args:
        text: At its beginning; the first character that is not white space is `[`.
        limit: Characters that one element may have.

    Raises:
        BrokenArray: It is malformed.
    """
    window = _Window(text)
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
    else:
        while True:
            yield window.element(limit)
            if window.peek() != ",":
                window.expect("]")
                break
            window.expect(",")
    if window.peek():
        raise window.wrong(f"{window.peek()!r} stands after the array's end")


class BrokenArray(ValueError):
    """The array is malformed, which ends the reading.

    Args:
        line: Where, 1-based.
        what: Why.
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"not a valid JSON array: {what}; reading ends here")
        self.line = line


class _Window:
    """The part of the text that is being read."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._decoder = text, json.JSONDecoder()
        self._held, self._at, self._line = "", 0, 1

    def wrong(self, what: str) -> BrokenArray:
        return BrokenArray(self._line, what)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._line += self._held[self._at] == "\n"
                self._at += 1
            if self._at < len(self._held) or not self._more(_CHUNK):
                return self._held[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.wrong(f"{character!r} is missing before {found!r}" if found else "it breaks off")
        self._at += 1

    def element(self, limit: int) -> tuple[int, object]:
        self.peek()
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                # Perhaps only the rest is missing; ever larger pieces keep the work linear.
                if len(self._held) - self._at > limit:
                    raise self.wrong(f"an element is malformed or longer than {limit:,} characters") from error
                if not self._more(wanted):
                    raise self.wrong(f"{error.msg} at column {error.colno}") from error
                wanted *= 2
                continue
            except (ValueError, RecursionError) as error:
                raise self.wrong(str(error)) from error
            # A number may go on in the next piece.
            if end == len(self._held) and self._more(_CHUNK):
                continue
            if end - self._at > limit:
                raise self.wrong(f"an element is longer than {limit:,} characters")
            line, self._line = self._line, self._line + self._held.count("\n", self._at, end)
            self._at = end
            return line, value

    def _more(self, characters: int) -> bool:
        piece = self._text.read(characters)
        self._held, self._at = self._held[self._at :] + piece, 0
        return bool(piece)
