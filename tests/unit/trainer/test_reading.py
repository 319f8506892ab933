from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.prepare.reading import MAX_LINE, Container, Problem, Row, look_at
from pyarrow import parquet

ROWS = [{"question": "Wie groß?", "answer": "klein"}, {"question": "Say “two\nlines”", "answer": "a, b"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'question,answer\nWie groß?,klein\n"Say “two\nlines”","a, b"\n'


def _write(folder: Path, data: str | bytes) -> Path:
    path = folder / "data.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _values(path: Path, encoding: str | None = None) -> list[object]:
    return [row.value for row in look_at(path, encoding).rows() if isinstance(row, Row)]


def _problems(path: Path) -> list[Problem]:
    return [row for row in look_at(path).rows() if isinstance(row, Problem)]


@pytest.mark.parametrize(
    ("text", "container"),
    [
        (JSONL, Container.LINES),
        ("\n \n" + JSONL, Container.LINES),
        (JSONL.replace("\n", "\r\n"), Container.LINES),
        (JSONL.rstrip("\n"), Container.LINES),
        (json.dumps(ROWS), Container.ARRAY),
        (json.dumps(ROWS, indent=2), Container.ARRAY),
        (CSV, Container.CSV),
        (CSV.replace("a, b", "a; b").replace(",", ";").replace("a; b", "a, b"), Container.CSV),
        (CSV.replace("a, b", "a; b").replace(",", "\t").replace("a; b", "a, b"), Container.CSV),
        (CSV + "\n\n", Container.CSV),
        ("\n \n" + CSV, Container.CSV),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_read_by_content_in_every_container_and_encoding(
    tmp_path: Path, text: str, container: Container, encoding: str, packed: bool
) -> None:
    data = text.encode(encoding)
    path = _write(tmp_path, gzip.compress(data) if packed else data)
    source = look_at(path)
    assert (source.container, source.compressed) == (container, packed)
    assert [row.value for row in source.rows() if isinstance(row, Row)] == ROWS


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    parquet.write_table(pa.Table.from_pylist([*ROWS, {"question": None, "answer": "x"}]), path)
    assert _values(path) == [*ROWS, {"question": None, "answer": "x"}]
    assert look_at(path).described() == "Parquet"


def test_crlf_inside_quotes_stays_one_row(tmp_path: Path) -> None:
    path = _write(tmp_path, 'question,answer\r\n"one\r\ntwo",x\r\nthree,y\r\n')
    rows = [row for row in look_at(path).rows() if isinstance(row, Row)]
    assert [(row.number, row.value) for row in rows] == [
        (2, {"question": "one\r\ntwo", "answer": "x"}),
        (4, {"question": "three", "answer": "y"}),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (b" \n\n ", "only white space"),
        (b"PK\x03\x04" + b"x" * 40, "Excel workbook"),
        (b"%PDF-1.7 ...", "a PDF"),
        (b"BZh91AY", "bzip2"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"\x93NUMPY\x00\x00\x01\x00\x7f\x00\x00\x02", "is a binary file"),
        (b"PAR1 and no more", "damaged Parquet file"),
        (gzip.compress(JSONL.encode())[:-9], "breaks off"),
        (gzip.compress(JSONL.encode() * 50)[:40] + b"x" * 40, "damaged"),
        (b'{\n  "question": "a",\n  "answer": "b"\n}\n', "spread over several lines"),
        (b"Just some text.\nAnd more.\n", "neither JSON nor the header of a CSV"),
        (b"question,Answer,answer\na,b,c\n", "'answer' stands there twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_way_out(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        list(look_at(_write(tmp_path, data)).rows())
    assert says in caught.value.message
    assert caught.value.hint


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        look_at(tmp_path / "none.jsonl")
    _write(tmp_path, JSONL)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="is a pipe"):
        look_at(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="is a folder") as caught:
        look_at(tmp_path)
    assert "data.txt" in caught.value.hint


def test_an_old_encoding_is_never_guessed_but_shown_as_it_would_read(tmp_path: Path) -> None:
    data = "question;answer\nWas ist das?;Eine überschießende Reaktion\n".encode("cp1252")
    path = _write(tmp_path, data)
    with pytest.raises(InvalidInput) as caught:
        look_at(path)
    assert "line 2" in caught.value.message
    assert "überschießende Reaktion' as cp1252" in caught.value.message
    assert "--encoding" in caught.value.hint
    assert _values(path, "cp1252") == [{"question": "Was ist das?", "answer": "Eine überschießende Reaktion"}]


def test_one_broken_byte_in_utf8_is_named_with_its_line_wherever_it_stands(tmp_path: Path) -> None:
    good = '{"question": "größer oder kleiner, für alle Ärzte", "answer": "b"}\n'
    for before in (0, 40, 40_000):
        data = good.encode() * before + b'{"question": "caf\xe9", "answer": "x"}\n' + good.encode() * 3
        with pytest.raises(InvalidInput, match=f"line {before + 1}: byte 0xe9"):
            look_at(_write(tmp_path, data))


def test_a_wrong_encoding_that_was_named_is_told(tmp_path: Path) -> None:
    path = _write(tmp_path, CSV)
    with pytest.raises(InvalidInput, match="no encoding 'klingon'"):
        look_at(path, "klingon")
    with pytest.raises(InvalidInput, match="cannot be read as ascii"):
        look_at(path, "ascii")


def test_every_bad_line_is_told_and_the_good_ones_are_read(tmp_path: Path) -> None:
    good = JSONL.splitlines()[0]
    path = _write(tmp_path, f"{good}\n{{bad\n\n{good}\n[1,\n" + "[" * 100_000 + "\n")
    assert [problem.number for problem in _problems(path)] == [2, 5, 6]
    assert "column 2" in _problems(path)[0].message
    assert len(_values(path)) == 2


def test_a_line_of_a_hundred_megabytes_is_skipped_without_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"question": "')
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n' + JSONL.encode())
    started = time.monotonic()
    [problem] = _problems(path)
    assert (problem.number, f"{MAX_LINE:,}" in problem.message) == (1, True)
    assert _values(path) == ROWS
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3, "Expecting value"),
        ('[\n{"a": 1},\n{"a": 2}\n', 4, "breaks off"),
        ('[{"a": 1} {"a": 2}]', 1, "missing before '{'"),
        ('[{"a": 1}]\n{"a": 2}', 2, "after the array's end"),
        ('["' + "x" * (MAX_LINE + 200_000) + '"]', 1, "longer than"),
    ],
)
def test_a_broken_array_is_told_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    [problem] = _problems(_write(tmp_path, text))
    assert problem.number == line
    assert says in problem.message


def test_an_array_longer_than_one_piece_is_read_whole(tmp_path: Path) -> None:
    rows = [{"n": number, "text": "ä" * (number % 700), "list": [number, 1.5]} for number in range(3000)]
    assert _values(_write(tmp_path, json.dumps(rows))) == rows
    assert _values(_write(tmp_path, json.dumps(list(range(40_000))))) == list(range(40_000))
    assert _values(_write(tmp_path, "[ ]")) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("question,answer\na,b,c\nd,e\n", 2, "3 cells where the header has 2"),
        ('question,answer\n"a" or "b",c\nd,e\n', 2, "written twice"),
        ('question,answer\na,b\n"never closed,c\nd,e\n', 3, "never closed"),
        ('question,answer\na,b\n"never closed,c\n' + "d,e\n" * 60_000, 3, "never closed"),
        ("question,answer\na," + "x" * (MAX_LINE + 5) + "\nd,e\n", 2, "too long"),
    ],
)
def test_a_bad_csv_row_is_told_with_the_line_it_begins_on(tmp_path: Path, text: str, line: int, says: str) -> None:
    [problem] = _problems(_write(tmp_path, text))
    assert problem.number == line
    assert says in problem.message


@pytest.mark.parametrize("text", [CSV, JSONL])
def test_excels_mark_before_utf_8_is_no_part_of_it_where_the_encoding_is_named(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path, text.encode("utf-8-sig"))
    assert _values(path, "utf-8") == ROWS


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, f"question,answer\nWhy?,{'x' * 200_000}\n")
    assert _values(path) == [{"question": "Why?", "answer": "x" * 200_000}]
