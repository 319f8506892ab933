from __future__ import annotations

import time
from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.records import SqlQuestion
from preceptor_trainer.evaluate.graders import SqlGrader
from preceptor_trainer.evaluate.sql_sandbox import (
    ROW_LIMIT,
    TIME_LIMIT_S,
    Refusal,
    Rows,
    SqlSandbox,
    clean_query,
    is_ordered,
)

SCRIPT = """
CREATE TABLE plants (id INTEGER PRIMARY KEY, name TEXT, height REAL);
INSERT INTO plants VALUES (1, 'moss', 0.1), (2, 'fern', 1.0), (3, 'reed', 2.3), (4, NULL, 2.3);
"""
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT "


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> SqlSandbox:
    path = tmp_path_factory.mktemp("sql") / "plants.sql"
    path.write_text(SCRIPT, encoding="utf-8")
    return SqlSandbox(path)


def _question(query: str) -> SqlQuestion:
    return SqlQuestion(id="q", kind="sql", topic="t", group="g", question="?", query=query)


def _is_right(sandbox: SqlSandbox, expected: str, answer: str) -> bool:
    question = _question(expected)
    return SqlGrader(sandbox, [question], max_tokens=9).grade(question, answer).correct


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM plants",
        "DROP TABLE plants",
        "UPDATE plants SET name = 'x'",
        "INSERT INTO plants VALUES (9, 'x', 1)",
        "CREATE TABLE t (x)",
        "CREATE TEMP TABLE t (x)",
        "ATTACH DATABASE '/tmp/preceptor-stolen.db' AS stolen",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "VACUUM INTO '/tmp/preceptor-stolen.db'",
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_table_info('plants')",
        "BEGIN",
        "SELECT 1; DROP TABLE plants",
        "",
        "-- nothing",
        "the patients",
        "SELECT nope FROM plants",
        "SELECT '\ud800'",
        "SELECT 1 \x00",
    ],
)
def test_anything_but_one_reading_query_is_refused_and_changes_nothing(sandbox: SqlSandbox, query: str) -> None:
    assert isinstance(sandbox.run(query), Refusal)
    assert sandbox.run("SELECT count(*) FROM plants") == Rows(1, ((4,),))
    assert not Path("/tmp/preceptor-stolen.db").exists()


@pytest.mark.parametrize("rest", ["max(x) FROM n", "x FROM n ORDER BY x", "count(*) FROM n AS a, n AS b, n AS c"])
def test_an_endless_query_is_stopped_in_time(sandbox: SqlSandbox, rest: str) -> None:
    started = time.monotonic()
    refused = sandbox.run(ENDLESS + rest)
    assert isinstance(refused, Refusal)
    assert "longer than" in refused.reason
    assert time.monotonic() - started < TIME_LIMIT_S + 2


def test_too_many_rows_are_refused(sandbox: SqlSandbox) -> None:
    assert isinstance(sandbox.run(f"{ENDLESS}x FROM n LIMIT {ROW_LIMIT + 1}"), Refusal)
    assert isinstance(sandbox.run(f"{ENDLESS}x FROM n LIMIT {ROW_LIMIT}"), Rows)


def test_a_huge_value_is_refused(sandbox: SqlSandbox) -> None:
    assert isinstance(sandbox.run("SELECT zeroblob(500000000)"), Refusal)


@pytest.mark.parametrize(
    "query",
    [
        f"{ENDLESS}hex(zeroblob(40000)) FROM n LIMIT 900",
        "SELECT printf('%.*c', 99000, 'a') LIKE '%' || printf('%.*c', 40000, 'a') || 'b'",
    ],
)
def test_long_values_and_patterns_are_refused(sandbox: SqlSandbox, query: str) -> None:
    assert isinstance(sandbox.run(query), Refusal)


def test_one_call_that_the_clock_cannot_stop_ends_soon_all_the_same(sandbox: SqlSandbox) -> None:
    started = time.monotonic()
    sandbox.run("SELECT instr(printf('%.*c', 99000, 'a'), printf('%.*c', 49000, 'a') || 'b')")
    assert time.monotonic() - started < TIME_LIMIT_S + 2


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("SELECT name FROM plants", "SELECT name FROM plants ORDER BY height DESC", True),
        ("SELECT name FROM plants ORDER BY id", "SELECT name FROM plants ORDER BY id DESC", False),
        ("SELECT name FROM plants ORDER BY id", "SELECT name FROM plants ORDER BY id ASC", True),
        ("SELECT name FROM plants", "SELECT DISTINCT height FROM plants", False),
        ("SELECT height FROM plants", "SELECT DISTINCT height FROM plants", False),
        ("SELECT name FROM plants", "SELECT name, id FROM plants", False),
        ("SELECT 2", "SELECT 2.0 AS other_name", True),
        ("SELECT 0.3", "SELECT 0.1 + 0.2", True),
        ("SELECT name FROM plants WHERE id = 4", "SELECT NULL", True),
        ("SELECT '2'", "SELECT 2", False),
        ("SELECT count(*) FROM plants", "```sql\nSELECT count(*) FROM plants;\n```", True),
        ("SELECT count(*) FROM plants", "Here you are: ```SELECT count(id) FROM plants```", True),
        ("SELECT count(*) FROM plants", "  SELECT count(*) FROM plants ;; ", True),
        ("SELECT count(*) FROM plants", "SELECT count(*) FROM plants; SELECT 1", False),
        ("SELECT count(*) FROM plants", "", False),
        ("SELECT count(*) FROM plants", "DELETE FROM plants", False),
    ],
)
def test_an_answer_is_right_when_it_returns_the_same(
    sandbox: SqlSandbox, expected: str, answer: str, right: bool
) -> None:
    assert _is_right(sandbox, expected, answer) is right


def test_a_wrong_answer_says_why(sandbox: SqlSandbox) -> None:
    question = _question("SELECT 1")
    graded = SqlGrader(sandbox, [question], max_tokens=9).grade(question, "SELECT 1, 2")
    assert graded.reason == "it returns 2 column(s), not 1"


def test_an_exam_whose_own_query_fails_is_refused(sandbox: SqlSandbox) -> None:
    with pytest.raises(InvalidInput, match="'q'"):
        SqlGrader(sandbox, [_question("SELECT nope FROM plants")], max_tokens=9)


def test_a_broken_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sql").write_text("CREATE TABLE;", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"x\.sql"):
        SqlSandbox(tmp_path / "x.sql")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ("SELECT a FROM t -- order by a", False),
        ("SELECT ')' FROM t ORDER BY 1", True),
        ('SELECT "order by", (a) FROM t', False),
    ],
)
def test_only_an_outer_order_by_orders(query: str, ordered: bool) -> None:
    assert is_ordered(query) is ordered


def test_a_query_is_taken_out_of_its_wrapping() -> None:
    assert clean_query("```sqlite\nSELECT 1;\n```\nThis returns 1.") == "SELECT 1"
