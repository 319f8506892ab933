"""Runs queries that a language model wrote: read-only, on a copy, with limits on time, rows and memory."""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import read_text

TIME_LIMIT_S = 0.5
ROW_LIMIT = 1000
_VALUE_BYTES = 100_000
"""Longest value that a query may build. One function call cannot be stopped by the clock, and instr, replace and LIKE
take up to the product of their arguments' lengths."""
_PATTERN_BYTES = 1000
"""Longest pattern of LIKE and GLOB, for the same reason."""
_RESULT_BYTES = 10_000_000
"""Longest result; rows of long values would fill the memory before there are too many of them."""
_STEPS = 1000
"""Virtual-machine instructions between looks at the clock: far below a millisecond."""
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_REFUSED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"})
_DIGITS = 6

# Strings, quoted names and comments, which may hold brackets or the words ORDER BY.
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_ORDER = re.compile(r"\border\s+by\b|[()]", re.IGNORECASE)
_FENCE = re.compile(r"```(?:[a-zA-Z]+[ \t]*\n|\s*)(?P<inside>.*?)```", re.DOTALL)


class Rows(NamedTuple):
    """What a query returned."""

    columns: int
    rows: tuple[tuple[object, ...], ...]


class Refusal(NamedTuple):
    """Why a query has no rows."""

    reason: str


class SqlSandbox:
    """A database in memory that no query can change.

    Args:
        script: SQL that builds it.

    Raises:
        InvalidInput: The script fails.
    """

    def __init__(self, script: Path) -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            try:
                connection.executescript(read_text(script))
            except sqlite3.Error as error:
                raise InvalidInput(f"{script} is not a valid SQLite script: {error}.") from error
            self._image = connection.serialize()

    def run(self, query: str) -> Rows | Refusal:
        """Runs one query on a fresh copy; bad SQL is a `Refusal`, never an exception."""
        deadline = time.monotonic() + TIME_LIMIT_S
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(self._image)
            connection.execute("PRAGMA query_only = ON")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            connection.set_authorizer(_authorise)
            try:
                cursor = connection.execute(query)
                rows = _fetch(cursor)
            # sqlite3 raises its Warning for a second statement, ValueError for odd characters.
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                return Refusal(_reason(error, is_late=time.monotonic() > deadline))
        if cursor.description is None:
            return Refusal("it is no query")
        if rows is None:
            return Refusal(f"it returns more than {_RESULT_BYTES:,} bytes")
        if len(rows) > ROW_LIMIT:
            return Refusal(f"it returns more than {ROW_LIMIT} rows")
        return Rows(len(cursor.description), tuple(rows))


def _fetch(cursor: sqlite3.Cursor) -> list[tuple[object, ...]] | None:
    """Reads one row more than allowed at most; None where they are too long together."""
    rows: list[tuple[object, ...]] = []
    size = 0
    for row in cursor:
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if size > _RESULT_BYTES:
            return None
        rows.append(tuple(row))
        if len(rows) > ROW_LIMIT:
            break
    return rows


def clean_query(answer: str) -> str:
    """Takes the query out of an answer: code fences, surrounding space and the last semicolon go."""
    fenced = _FENCE.search(answer)
    text = fenced["inside"] if fenced else answer
    return text.strip().rstrip(";").rstrip()


def is_ordered(query: str) -> bool:
    """Tells whether the whole result is ordered; ORDER BY inside brackets orders only a part."""
    depth = 0
    for match in _ORDER.finditer(_QUOTED.sub(" ", query)):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] not in "()" and depth == 0:
            return True
    return False


def same_rows(expected: Rows, answered: Rows, *, ordered: bool) -> bool:
    """Compares two results: in order or as multisets, floats to 6 decimals, column names left out."""
    if expected.columns != answered.columns:
        return False
    left, right = _rounded(expected), _rounded(answered)
    return left == right if ordered else Counter(left) == Counter(right)


def _rounded(result: Rows) -> list[tuple[object, ...]]:
    return [tuple(round(value, _DIGITS) if isinstance(value, float) else value for value in row) for row in result.rows]


def _authorise(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    del first, database, trigger
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _reason(error: Exception, *, is_late: bool) -> str:
    if is_late:
        return f"it ran longer than {TIME_LIMIT_S} s"
    if "not authorized" in str(error) or "prohibited" in str(error):
        return "it does more than read"
    return f"SQLite says: {error}"
