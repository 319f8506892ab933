from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.domains import find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.records import ExactQuestion, KeypointsQuestion
from preceptor_trainer.evaluate.graders import grade_exact, grade_keypoints, grader_for
from preceptor_trainer.evaluate.wording import same_words, says, words
from preceptor_trainer.prepare.dataset import read_exam

from tests.unit.trainer.fixtures import FakeGateway, write_domain, write_jsonl

ABOUT = {"topic": "t", "group": "g"}


def _exact(answer: str, *accept: str) -> ExactQuestion:
    return ExactQuestion(id="q", kind="exact", question="?", answer=answer, accept=accept, **ABOUT)


def _keypoints(*points: list[str], forbidden: tuple[str, ...] = ()) -> KeypointsQuestion:
    rows = [{"any_of": wordings} for wordings in points]
    return KeypointsQuestion.model_validate(
        {"id": "q", "kind": "keypoints", "question": "?", "points": rows, "forbidden": forbidden, **ABOUT}
    )


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("Paris", " paris. ", True),
        ("Paris", "PARIS", True),
        ("Paris", "Paris, France", False),
        ("Paris", "It is Paris.", False),
        ("Straße", "STRASSE", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("don't", "Don\u2019t", True),
        ("don't", "don\u00b4t", True),
        ("ten  mg", "ten\nmg", True),
        ("3.5", "3.5.", True),
        ("3.5", "35", False),
        ("", "x", False),
    ],
)
def test_exact_leaves_out_case_space_and_a_last_full_stop_only(expected: str, answer: str, right: bool) -> None:
    if expected:
        assert grade_exact(_exact(expected), answer).correct is right
    assert same_words(expected, answer) is right


def test_any_accepted_answer_is_right_and_a_wrong_one_says_why() -> None:
    assert grade_exact(_exact("four", "4", "vier"), "Vier.").correct
    wrong = grade_exact(_exact("four", "4"), "five")
    assert (wrong.correct, wrong.reason, wrong.expected) == (False, "it is another answer", "four")


@pytest.mark.parametrize(
    ("points", "forbidden", "answer", "right"),
    [
        ([["24 hours", "one day"]], (), "It goes within 24 hours.", True),
        ([["24 hours", "one day"]], (), "It goes within ONE\nday!", True),
        ([["24 hours", "one day"]], (), "It goes within 1 day", True),
        ([["24 hours"]], (), "hours: 24", False),
        ([["art"]], (), "Start with a heart", False),
        ([["1000 mg"]], (), "Take 1,000 mg", True),
        ([["2.5 ml"]], (), "Take 2.50 ml.", True),
        ([["25 ml"]], (), "Take 2.5 ml.", False),
        ([["50 percent"]], (), "about 50 %", True),
        ([["adrenaline"], ["lie down"]], (), "Adrenaline first, then lie down.", True),
        ([["adrenaline"], ["lie down"]], (), "Adrenaline first.", False),
        ([["rest"]], ("aspirin",), "Rest and take Aspirin", False),
        ([["rest"]], ("aspirin",), "Rest", True),
        ([["\u6c34"]], (), "\u559d\u6c34\u5427", True),
        ([["wait"]], (), "", False),
    ],
)
def test_keypoints_are_compared_by_words_in_a_row(
    points: list[list[str]], forbidden: tuple[str, ...], answer: str, right: bool
) -> None:
    assert grade_keypoints(_keypoints(*points, forbidden=forbidden), answer).correct is right


def test_a_point_that_the_answer_denies_is_found_all_the_same_unless_it_is_forbidden() -> None:
    denied = "Never give adrenaline."
    assert grade_keypoints(_keypoints(["adrenaline"]), denied).correct
    assert not grade_keypoints(_keypoints(["adrenaline"], forbidden=("never give",)), denied).correct


def test_what_is_missing_and_what_is_forbidden_are_named() -> None:
    graded = grade_keypoints(_keypoints(["lie down", "lying"], ["call 112"], forbidden=("wait",)), "Wait and lie down")
    assert graded.reason == "it does not say 'call 112'; it says 'wait'"


@given(st.text(), st.text())
def test_the_words_of_a_text_are_in_it(text: str, more: str) -> None:
    assert says(words(text), words(text))
    assert says(words(f"{text} \n {more}"), words(text)) or not words(text) or not words(more)


MIXED: list[dict[str, object]] = [
    {"id": "m", "kind": "mcq", "question": "Which?", "options": ["red", "blue"], "answer": 0, **ABOUT},
    {"id": "x", "kind": "exact", "question": "Name it", "answer": "moss", **ABOUT},
    {"id": "k", "kind": "keypoints", "question": "Explain", "points": [{"any_of": ["green"]}], **ABOUT},
    {"id": "s", "kind": "sql", "question": "Count", "query": "SELECT count(*) FROM plants", **ABOUT},
]


def _domain(folder: Path, rows: list[dict[str, object]], *, lines: str = "grader: mixed\n") -> None:
    path = folder / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("grader: mcq\n", lines), encoding="utf-8")
    (folder / "plants.sql").write_text(
        "CREATE TABLE plants (id); INSERT INTO plants VALUES (1), (2);", encoding="utf-8"
    )
    write_jsonl(folder / "exam.jsonl", rows)


async def test_a_mixed_exam_asks_every_question_by_its_kind(tmp_path: Path, gateway: FakeGateway) -> None:
    _domain(write_domain(tmp_path, name="plants"), MIXED, lines="grader: mixed\ndatabase: plants.sql\n")
    folder = find_domain(tmp_path, "plants")
    questions = read_exam(folder)
    answers = {"Name it": "Moss.", "Explain": "It is green", "Count": "SELECT 2"}
    gateway.says = lambda served, question: answers[question]
    async with gateway.connect(gateway.settings) as client:
        grader = grader_for(folder, questions)
        graded = [await grader.ask(client, "plants:base", question) for question in questions]
    assert [one.correct for one in graded] == [False, True, True, True]
    assert [path for _, path in gateway.asked] == ["/submit_mcq", *["/v1/chat/completions"] * 3]


@pytest.mark.parametrize(
    ("row", "says_so"),
    [
        (MIXED[3], "no `database`"),
        ({**MIXED[2], "points": [{"any_of": ["!!"]}]}, "'!!', which holds no word"),
        ({**MIXED[2], "forbidden": ["green"]}, "forbids what it asks for"),
        ({**MIXED[1], "question": "a\x00b"}, "NUL"),
    ],
)
def test_a_question_that_the_domain_cannot_ask_is_named_when_the_exam_is_read(
    tmp_path: Path, row: dict[str, object], says_so: str
) -> None:
    _domain(write_domain(tmp_path, name="plants"), [row])
    with pytest.raises(InvalidInput) as caught:
        read_exam(find_domain(tmp_path, "plants"))
    assert says_so in caught.value.message
    assert repr(row["id"]) in caught.value.message


def test_multiple_choice_needs_a_layout(tmp_path: Path) -> None:
    _domain(write_domain(tmp_path, name="plants"), [MIXED[0]])
    path = tmp_path / "plants" / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("mcq: {scoring: options}\n", ""), encoding="utf-8")
    with pytest.raises(InvalidInput, match="no `mcq` layout"):
        read_exam(find_domain(tmp_path, "plants"))


def test_another_kind_than_the_domains_grader_is_refused(tmp_path: Path) -> None:
    _domain(write_domain(tmp_path, name="plants"), [MIXED[1]], lines="grader: keypoints\n")
    with pytest.raises(InvalidInput, match="'exact', but the domain's grader is 'keypoints'"):
        read_exam(find_domain(tmp_path, "plants"))


@pytest.mark.parametrize(
    ("content", "says_so"),
    [
        (b"", "holds no rows"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"[1, 2]\n", "line 1"),
        (b"null\n", "line 1"),
        (b'{"id": "a"', "not valid JSON"),
        (
            b'{"id": "e", "kind": "mcq", "topic": "t", "group": "g", "question": "q", "options": ["a", "b"], '
            b'"answer": NaN}',
            "answer",
        ),
        (b'{"id": "e", "kind": "exact", "topic": "t", "group": "g", "question": NaN, "answer": "a"}', "question"),
        (b'{"id": "e", "kind": "riddle", "topic": "t", "group": "g", "question": "q"}', "riddle"),
        (b'{"id": "e", "kind": "exact", "topic": "t", "group": "g", "question": "q", "answer": "\\ud800"}', "answer"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 10_000, "not valid JSON"),
    ],
)
def test_a_broken_exam_file_is_a_sentence_with_its_line(tmp_path: Path, content: bytes, says_so: str) -> None:
    folder = write_domain(tmp_path, name="plants")
    (folder / "exam.jsonl").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_exam(find_domain(tmp_path, "plants"))
    assert says_so in caught.value.message
    assert len(caught.value.message) < 1000
