"""Rows of a data file: JSON lines, a JSON array, CSV or Parquet, gzipped or not; told by content, never by its name.

Rows are yielded one at a time with their place, and bad ones as problems, so that a file of any size can be read and
all that is wrong with it be told at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from preceptor_contracts.errors import InvalidInput

from preceptor_trainer.prepare.arrays import BrokenArray, array_elements
from preceptor_trainer.prepare.encodings import detect_encoding, require_encoding
from preceptor_trainer.prepare.formats import KNOWN_COLUMNS, column_name
from preceptor_trainer.prepare.privacy import masked

MAX_LINE = 4 * 2**20
"""Characters of one row; 131072 tokens, the most that a recipe may allow, are about half a million."""
_BATCH = 256
_DELIMITERS = (",", ";", "\t", "|")
_FORMATS = "Known are JSON lines, a JSON array, CSV and Parquet, each also gzipped (Parquet not)."
_REFUSED = {
    b"PK\x03\x04": ("a ZIP archive or an Excel workbook", "Save the sheet as CSV (UTF-8), or unpack the archive."),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "Save the sheet as CSV (UTF-8)."),
    b"%PDF": ("a PDF", "Export the rows as CSV or JSON lines."),
    b"BZh": ("compressed with bzip2", "Unpack it: bunzip2."),
    b"\xfd7zXZ": ("compressed with xz", "Unpack it: unxz."),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Unpack it: unzstd."),
    b"ARROW1": ("an Arrow file", "Write it as Parquet."),
}


class Container(StrEnum):
    """How rows are laid out in a file."""

    LINES = "JSON lines"
    ARRAY = "JSON array"
    CSV = "CSV"
    PARQUET = "Parquet"


class Row(NamedTuple):
    """One row as it stands in the file."""

    number: int
    """1-based: the line that it begins on, or the row where a file has no lines."""
    value: object


class Problem(NamedTuple):
    """A row that cannot be used, and why, with its field."""

    number: int
    message: str


class Source(NamedTuple):
    """A data file that was looked at and can be read, as often as needed."""

    path: Path
    container: Container
    encoding: str
    """Python's name; empty for Parquet."""
    delimiter: str = ""
    """Of CSV."""
    compressed: bool = False

    @property
    def unit(self) -> str:
        """What numbers of rows count."""
        return "row" if self.container is Container.PARQUET else "line"

    def described(self) -> str:
        """Says what the file was taken for."""
        named = {"\t": "tab"}.get(self.delimiter, repr(self.delimiter))
        parts = [
            self.container.value + (f" with {named}" if self.delimiter else ""),
            self.encoding,
            "gzip" if self.compressed else "",
        ]
        return ", ".join(part for part in parts if part)

    def rows(self) -> Iterator[Row | Problem]:
        """Yields every row, in order, in bounded memory.

        Raises:
            InvalidInput: The file breaks off or cannot be decoded.
        """
        if self.container is Container.PARQUET:
            yield from _parquet_rows(self.path)
            return
        try:
            with _open_text(self) as text:
                if self.container is Container.LINES:
                    yield from _json_rows(text)
                elif self.container is Container.ARRAY:
                    yield from _array_rows(text)
                else:
                    yield from _csv_rows(text, self.delimiter)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidInput(f"{self.path} breaks off or is damaged: {error}.", hint="Copy it again.") from error
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{self.path} cannot be read as {self.encoding}: {error.reason}.",
                code="wrong_encoding",
                hint="Name the right one with --encoding, or save the file as UTF-8.",
            ) from error


def look_at(path: Path, encoding: str | None = None) -> Source:
    """Finds out what a data file is.

    Args:
        path: Any file.
        encoding: What the person says that it is written in; None finds out.

    Raises:
        InvalidInput: It is missing, a folder, empty, in an unknown format or encoding.
    """
    head = _read_head(path)
    for magic, (what, hint) in _REFUSED.items():
        if head.startswith(magic):
            raise InvalidInput(f"{path} is {what}.", code="unknown_format", hint=f"{hint} {_FORMATS}")
    if head.startswith(b"PAR1"):
        return Source(path, Container.PARQUET, "")
    compressed = head.startswith(b"\x1f\x8b")
    if encoding is not None:
        found = require_encoding(encoding)
    else:
        try:
            with _open_bytes(path, compressed=compressed) as stream:
                found = detect_encoding(stream, str(path))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidInput(f"{path} breaks off or is damaged: {error}.", hint="Copy it again.") from error
    return _look_inside(Source(path, Container.LINES, found, compressed=compressed))


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_file())[:8]) or "no file"
        raise InvalidInput(f"{path} is a folder.", code="is_a_folder", hint=f"Name one file; it holds {inside}.")
    if path.exists() and not path.is_file():
        # A pipe can be read once only, and one that nobody writes to would hang.
        raise InvalidInput(f"{path} is a pipe or a device.", code="not_a_file", hint="Write the rows to a file first.")
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist.", code="file_missing", hint="Check the path.") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", hint="Check who may read it.") from error
    if not head:
        raise InvalidInput(f"{path} is empty (0 bytes).", code="file_empty", hint="Add at least one row.")
    return head


def _look_inside(source: Source) -> Source:
    try:
        with _open_text(source) as text:
            head = text.read(MAX_LINE).lstrip()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{source.path} cannot be read as {source.encoding}: {error.reason}.",
            code="wrong_encoding",
            hint="Leave --encoding out, or name the right one.",
        ) from error
    if not head:
        raise InvalidInput(f"{source.path} holds no rows, only white space.", code="file_empty", hint="Add a row.")
    if head[0] == "{":
        if head.splitlines()[0].rstrip() == "{":
            raise InvalidInput(
                f"{source.path} holds a JSON object that is spread over several lines.",
                code="unknown_format",
                hint="Write one object a line (jq -c . FILE does it), or put all of them into one JSON array.",
            )
        return source
    if head[0] == "[":
        return source._replace(container=Container.ARRAY)
    return source._replace(container=Container.CSV, delimiter=_delimiter_of(source.path, head))


def _delimiter_of(path: Path, head: str) -> str:
    """The delimiter that makes most known columns of the first row."""

    def columns(delimiter: str) -> list[str]:
        try:
            return next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter))
        except (csv.Error, StopIteration):
            return []

    def fit(delimiter: str) -> tuple[int, int]:
        names = columns(delimiter)
        return sum(column_name(name) in KNOWN_COLUMNS for name in names), len(names)

    best = max(_DELIMITERS, key=fit)
    names = [column_name(name) for name in columns(best)]
    if fit(best)[0] < 2:
        first = masked(head.splitlines()[0][:60])
        raise InvalidInput(
            f"{path} begins with {first!r}, which is neither JSON nor the header of a CSV file with known columns.",
            code="unknown_format",
            hint="A CSV file needs a first row such as question,answer or instruction,output. " + _FORMATS,
        )
    if repeated := [name for name in names if name and names.count(name) > 1]:
        raise InvalidInput(
            f"{path}: column {repeated[0]!r} stands there twice.", hint="Give every column its own name."
        )
    return best


def _open_bytes(path: Path, *, compressed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


@contextmanager
def _open_text(source: Source) -> Iterator[TextIO]:
    # JSON ends a line at "\n" alone; CSV must see line breaks inside quotes as they are.
    newline = "" if source.container is Container.CSV else "\n"
    with (
        _open_bytes(source.path, compressed=source.compressed) as stream,
        io.TextIOWrapper(stream, encoding=source.encoding, newline=newline) as text,
    ):
        yield text


def _lines(text: TextIO) -> Iterator[tuple[int, str | None]]:
    """Numbered lines; None for one that is too long, which is skipped without holding it."""
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) <= MAX_LINE or line.endswith("\n"):
            yield number, line
            continue
        while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
            pass
        yield number, None


def _json_rows(text: TextIO) -> Iterator[Row | Problem]:
    for number, line in _lines(text):
        if line is None:
            yield Problem(number, f"longer than {MAX_LINE:,} characters, the most that a row may have")
        elif line.strip():
            try:
                yield Row(number, json.loads(line))
            except json.JSONDecodeError as error:
                yield Problem(number, f"not valid JSON: {error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:
                yield Problem(number, f"not usable JSON: {error}")


def _array_rows(text: TextIO) -> Iterator[Row | Problem]:
    try:
        for number, value in array_elements(text, MAX_LINE):
            yield Row(number, value)
    except BrokenArray as error:
        yield Problem(error.line, str(error))


def _csv_rows(text: TextIO, delimiter: str) -> Iterator[Row | Problem]:
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(_csv_lines(text), delimiter=delimiter, strict=True)
    first = next(row for row in reader if any(cell.strip() for cell in row))
    header = [column_name(name) for name in first]
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" in str(error):
                yield Problem(number, f"not valid CSV: {error}; a quotation mark inside quotes is written twice")
                continue
            what = "a quotation mark is never closed, or a cell is too long"
            yield Problem(number, f"{what} ({error}); reading ends here")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            what = f"{len(cells)} cells where the header has {len(header)}"
            yield Problem(number, f"{what}; a text with {delimiter!r} in it needs quotation marks")
        else:
            yield Row(number, dict(zip(header, cells, strict=True)))


def _csv_lines(text: TextIO) -> Iterator[str]:
    for _, line in _lines(text):
        if line is None:
            raise csv.Error(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _parquet_rows(path: Path) -> Iterator[Row | Problem]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{path} is a damaged Parquet file: {str(error).splitlines()[0]}.", hint="Write it again."
        ) from error
