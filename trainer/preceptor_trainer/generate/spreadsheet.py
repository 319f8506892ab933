"""Tables that people edit in Excel or LibreOffice: what goes out comes back as it was, and runs nothing there."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import write_atomic

SEPARATORS = ",;\t"
"""Those that spreadsheets write, by the country they are set to."""
_BOM = "\ufeff"
"""Excel reads a file as UTF-8 only where it begins so."""
# Cells that begin like these are run as formulas (OWASP, "CSV Injection"), full-width spellings included; those that
# begin with a digit or a month may come back as a date: "1-2" as "01. Feb".
_TAKEN_FOR_MORE = re.compile(
    r"'*([=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]|\d|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?[ -]\d)",
    re.IGNORECASE,
)


class Row(NamedTuple):
    """One row below the header."""

    number: int
    """As a spreadsheet counts: the header is row 1."""
    line: int
    """Line of the file that the row ends on: cells may hold line breaks."""
    cells: dict[str, str]


class Table(NamedTuple):
    """A file as it was read."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    separator: str


def guard(text: str) -> str:
    """Puts an apostrophe before a cell that a spreadsheet would take for a formula, a number or a date."""
    return f"'{text}" if _TAKEN_FOR_MORE.match(text) else text


def unguard(text: str) -> str:
    """Takes the apostrophe of `guard` away."""
    return text[1:] if text.startswith("'") and _TAKEN_FOR_MORE.match(text[1:]) else text


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], separator: str) -> None:
    """Writes a table, whole or not at all; a row need not have every column."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    writer.writerows([guard(row.get(column, "")) for column in columns] for row in rows)
    write_atomic(path, _BOM + text.getvalue())


def read_table(path: Path, needed: Sequence[str]) -> Table:
    """Reads a table that a spreadsheet may have written.

    Args:
        path: The file.
        needed: Columns that must be there; their order does not matter, and there may be more.

    Raises:
        InvalidInput: Not there, not UTF-8, no such table.
    """
    text = _decoded(path)
    header = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if number == 1:
                columns = _columns(path, cells, needed)
            elif any(cell.strip() for cell in cells):
                rows.append(_row(path, number, reader.line_num, columns, cells))
    except csv.Error as error:
        raise InvalidInput(
            f"{path} row {number + 1} (line {reader.line_num}): {error}.", hint="Save the file as CSV UTF-8 again."
        ) from error
    if not columns:
        raise InvalidInput(f"{path} is empty.")
    return Table(columns, tuple(rows), separator)


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist.", code="file_missing") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error}.") from error
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        # Not guessed: what Excel cannot write in its old encodings it replaces by question marks, for good.
        raise InvalidInput(
            f"{path} is not UTF-8: byte {error.start} cannot be read.",
            hint="In Excel, save it as 'CSV UTF-8'; in LibreOffice, choose the character set Unicode (UTF-8).",
        ) from error


def _columns(path: Path, cells: Sequence[str], needed: Sequence[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip().casefold() for cell in cells)
    if missing := [name for name in needed if name not in columns]:
        raise InvalidInput(
            f"{path} has no column {missing[0]!r}; its first row is {cells!r}."[:300],
            hint=f"Keep the first row as it was written: {', '.join(needed)}, ...",
        )
    named = [name for name in columns if name]
    if twice := next((name for name in named if named.count(name) > 1), ""):
        raise InvalidInput(f"{path} has column {twice!r} twice.", hint="Rename or remove one of them.")
    return columns


def _row(path: Path, number: int, line: int, columns: Sequence[str], cells: Sequence[str]) -> Row:
    if beyond := [cell for cell in cells[len(columns) :] if cell.strip()]:
        raise InvalidInput(
            f"{path} row {number} (line {line}): {beyond[0]!r} stands right of the last column.",
            hint="Move it into a column.",
        )
    texts = (unguard(cell.replace("\r\n", "\n").strip()) for cell in cells)
    return Row(number, line, {name: text for name, text in zip(columns, texts, strict=False) if name})
