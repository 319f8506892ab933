from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.generate.sources import html_text, read_documents, read_topics, split
from preceptor_trainer.generate.spreadsheet import guard, read_table, unguard, write_table


def test_paragraphs_stay_together_while_they_fit() -> None:
    assert split("one\n\ntwo\n\n\nthree three", 9) == ["one\n\ntwo", "three", "three"]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    assert split("First one. Second one. Third.", 22) == ["First one. Second one.", "Third."]


@given(st.text(alphabet="ab .\n", max_size=200), st.integers(1, 40))
def test_no_chunk_is_too_long_and_no_letter_is_lost(text: str, budget: int) -> None:
    chunks = split(text, budget)
    assert all(0 < len(chunk) <= budget for chunk in chunks)
    assert re.sub(r"\s", "", "".join(chunks)) == re.sub(r"\s", "", text)


def test_a_page_is_read_as_its_reader_sees_it() -> None:
    page = (
        "<html><head><title>No</title><style>p {}</style><body><h1>Moss &amp; fern</h1><p>Both <b>are</b>\n green.</p>"
        "<script>alert(1)</script><ul><li>one<li>two</ul>"
    )
    assert html_text(page) == "Moss & fern\n\nBoth are green.\n\none\n\ntwo"


def test_folders_are_read_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", ".hidden.txt", "sub/c.RST", "empty.txt", "table.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if "empty" in name else f"\ufeffText of {name}.", encoding="utf-8")
    read = read_documents([tmp_path], budget=200)
    assert [(source.origin, source.text) for source in read.sources] == [
        ("a.txt#1", "Text of a.txt."),
        ("b.md#1", "Text of b.md."),
        ("sub/c.RST#1", "Text of sub/c.RST."),
    ]
    assert (read.files, read.skipped) == (3, ("empty.txt", "table.csv"))


def test_a_document_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes("Müller".encode("cp1252"))
    with pytest.raises(InvalidInput, match=r"old\.txt cannot be read as UTF-8"):
        read_documents([path], budget=200)


def test_topics_come_from_both_places_once(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("Moss\n\n fern  leaves \n", encoding="utf-8")
    assert [source.topic for source in read_topics("moss, reed", path)] == ["moss", "reed", "fern leaves"]


@given(st.text())
def test_a_guarded_cell_comes_back_as_it_was(text: str) -> None:
    guarded = guard(text)
    assert unguard(guarded) == text
    assert not re.match(r"[=+\-@\t\r\n0-9]", guarded)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r")).map(str.strip)


@given(st.lists(st.tuples(CELL, CELL), max_size=4), st.sampled_from(",;\t"))
def test_a_table_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], by: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    rows = [{"id": f"i{number}", "text": left, "more": right} for number, (left, right) in enumerate(cells)]
    write_table(path, ("id", "text", "more"), rows, by)
    table = read_table(path, ("id", "text"))
    assert [row.cells for row in table.rows] == rows
    assert table.separator == by


def test_an_unclosed_quote_is_told_by_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,text\na,b\nc,"d\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match="row 3"):
        read_table(path, ("id",))
