"""Files that people write: every mistake names file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.domains import Domain, McqLayout
from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_contracts.files import canonical_json, write_atomic
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.mcq import Scoring, read_choices
from preceptor_contracts.records import QUESTIONS, RECORDS, to_example
from preceptor_contracts.served_names import ServedName, parse_served_name

CHAT = (
    '{"id":"1","kind":"chat","topic":"t","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}'
)


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(
        "\n".join(
            [
                CHAT,
                "{not json",
                "",
                '{"id":"2","kind":"odd","topic":"t"}',
                '{"id":"3","kind":"mcq","topic":"t","question":"q","options":["a","b"],"answer":2}',
                '{"id":"4","kind":"mcq","topic":"t","question":"q","options":["a","A "],"answer":0}',
            ]
        )
    )
    with pytest.raises(InvalidInput) as caught:
        read_jsonl(path, RECORDS)
    message = caught.value.message
    assert "train.jsonl line 2: not valid JSON" in message
    assert "line 4" in message
    assert "line 5: mcq: answer 2 is not the index of one of 2 options" in message
    assert "line 6: mcq.options: option 'A' stands there twice" in message
    assert "nothing was written" in caught.value.hint


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match="holds no rows"):
        read_jsonl(tmp_path / "empty.jsonl", QUESTIONS)
    with pytest.raises(InvalidInput, match="does not exist"):
        read_jsonl(tmp_path / "absent.jsonl", QUESTIONS)
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_jsonl(tmp_path / "latin.jsonl", QUESTIONS)


@pytest.mark.parametrize(
    ("row", "user", "answer"),
    [
        (
            {"kind": "chat", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "q",
            "a",
        ),
        ({"kind": "instruction", "instruction": "do", "input": "x", "output": "y"}, "do\n\nx", "y"),
        ({"kind": "prompt_completion", "prompt": "p", "completion": "c"}, "p", "c"),
        ({"kind": "mcq", "question": "q", "options": ["x", "y"], "answer": 1}, "q", "y"),
    ],
)
def test_every_kind_becomes_messages(row: dict[str, object], user: str, answer: str) -> None:
    domain = Domain(
        name="d",
        title="t",
        description="d",
        system="S",
        recipe="r",
        grader="mcq",
        mcq=McqLayout(scoring=Scoring.OPTIONS),
    )
    example = to_example(domain, RECORDS.validate_python({"id": "1", "topic": "t", **row}))
    assert [message.content for message in example.prompt] == ["S", user]
    assert example.answer == answer


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("base", ServedName(domain=None, is_base=True)),
        ("allergy", ServedName(domain="allergy")),
        ("allergy:base", ServedName(domain="allergy", is_base=True)),
        ("sat-reading:sat-reading-v12-0a1b2c3d", ServedName(domain="sat-reading", adapter="sat-reading-v12-0a1b2c3d")),
    ],
)
def test_served_names_round_trip(text: str, name: ServedName) -> None:
    assert parse_served_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text", ["", "Allergy", "a/b", "../x", "a:", ":base", "a:b", "a:c-v1-00000001", "a:a-v1-0000000g", "a\n"]
)
def test_odd_served_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_served_name(text)


def test_choices_with_and_without_labels() -> None:
    assert [choice.label for choice in read_choices(("(a) x", "B. y"))] == ["A", "B"]
    assert [choice.label for choice in read_choices(("An apple", "I think so"))] == ["A", "B"]
    assert [choice.text for choice in read_choices(("E. coli", "S. aureus"))] == ["E. coli", "S. aureus"]


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    write_atomic(path, "one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(PrerequisiteError("m", code="c", hint="h")))
    assert isinstance(error, PreceptorError)
    assert (error.message, error.code, error.hint, str(error)) == ("m", "c", "h", "m h")


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"é","b":1}'
