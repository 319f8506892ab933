from __future__ import annotations

import json
from typing import Any

import pytest
from preceptor_contracts.records import ChatRecord, InstructionRecord, McqRecord, PromptCompletionRecord, Record
from preceptor_trainer.prepare.answers import Asked, Counting, find_answer, settle_counting
from preceptor_trainer.prepare.cleaning import clean
from preceptor_trainer.prepare.formats import Converter

NAN = float("nan")


def _convert(row: object, *others: object, number: int = 12) -> Record:
    rows = [clean(row), *(clean(other) for other in others)]
    return Converter(lambda: iter(rows)).convert(rows[0], number).record


def _asked_and_answered(record: Record) -> tuple[str, str]:
    if isinstance(record, ChatRecord):
        return "|".join(f"{turn.role}:{turn.content}" for turn in record.messages[:-1]), record.messages[-1].content
    if isinstance(record, InstructionRecord):
        return f"{record.instruction}+{record.input}", record.output
    if isinstance(record, McqRecord):
        return record.question, record.options[record.answer]
    return record.prompt, record.completion


TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, TURNS[1]]
ARC = {"text": ["x", "y"], "label": ["A", "B"]}
SHARED = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("row", "kind", "asked", "answered"),
    [
        ({"instruction": "Q", "input": "I", "output": "A"}, InstructionRecord, "Q+I", "A"),
        ({"instruction": "Q", "input": "", "output": "A"}, InstructionRecord, "Q+", "A"),
        ({"instruction": "Q", "context": "I", "response": "A"}, InstructionRecord, "Q+I", "A"),
        ({"messages": TURNS}, ChatRecord, "user:Q", "A"),
        ({"messages": json.dumps(TURNS)}, ChatRecord, "user:Q", "A"),
        ({"messages": PARTS}, ChatRecord, "user:Q", "A"),
        ({"messages": [{"role": "developer", "content": "S"}, *TURNS]}, ChatRecord, "system:S|user:Q", "A"),
        ({"conversations": SHARED}, ChatRecord, "system:S|user:Q", "A"),
        ({"conversations": SHARED[1:], "system": "S"}, ChatRecord, "system:S|user:Q", "A"),
        ({"conversations": TURNS, "messages": None}, ChatRecord, "user:Q", "A"),
        ({"prompt": "Q", "completion": "A"}, PromptCompletionRecord, "Q", "A"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, ChatRecord, "user:Q", "A"),
        ({"Question": " Q ", "ANSWER": "A\r\n"}, PromptCompletionRecord, "Q", "A"),
        ({"question": "Q", "answer": "A", "passage": "P"}, PromptCompletionRecord, "P\n\nQ", "A"),
        ({"question": "Q", "answer": 42}, PromptCompletionRecord, "Q", "42"),
        ({"question": "Q", "answer": 1.5}, PromptCompletionRecord, "Q", "1.5"),
        ({"q": "Q", "a": "A"}, PromptCompletionRecord, "Q", "A"),
        ({"question": "Q", "options": ["x", "y"], "answer": "B"}, McqRecord, "Q", "y"),
        ({"question": "Q", "options": '["x", "y"]', "answer": "y"}, McqRecord, "Q", "y"),
        ({"question": "Q", "options": "x|y|z", "answer": "(c)"}, McqRecord, "Q", "z"),
        ({"question": "Q", "options": ["A) x", "B) y"], "answer": "B)"}, McqRecord, "Q", "y"),
        ({"question": "Q", "options": ["E. coli", "S. aureus"], "answer": "A"}, McqRecord, "Q", "E. coli"),
        ({"question": "Q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}, McqRecord, "Q", "y"),
        ({"question": "Q", "choices": ARC, "answerKey": "B"}, McqRecord, "Q", "y"),
        ({"question": "Q", "A": "x", "B": "y", "C": "", "D": "", "answer": "b"}, McqRecord, "Q", "y"),
        ({"question": "Q", "Option A": "x", "Option B": "y", "Correct Answer": "B."}, McqRecord, "Q", "y"),
        ({"question": "Q", "option_1": "x", "option_2": "y", "answer": "y."}, McqRecord, "Q", "y"),
    ],
)  # fmt: skip
def test_a_row_of_any_known_format_becomes_a_record(row: dict[str, Any], kind: type, asked: str, answered: str) -> None:
    record = _convert(row)
    assert isinstance(record, kind)
    assert _asked_and_answered(record) == (asked, answered)
    assert (record.id, record.topic) == ("row-000012", "general")


def test_what_a_row_says_about_itself_is_kept() -> None:
    row = {"uid": 7.0, "Category": "skin", "source": "NHS", "question": "Q", "A": "x", "B": "y", "answer": "A"}
    record = _convert({**row, "rationale": "R", "difficulty": "hard", "context": "P"})
    assert isinstance(record, McqRecord)
    assert (record.id, record.topic, record.source) == ("7", "skin", "NHS")
    assert (record.explanation, record.difficulty, record.passage) == ("R", "hard", "P")


def test_columns_that_are_not_used_are_named() -> None:
    row = {"question": "Q", "answer": "A", "topci": "skin", "note": "", "topic": NAN}
    assert Converter(lambda: iter([])).convert(row, 1).unused == ("topci",)


def test_our_own_records_are_held_to_their_contract() -> None:
    own = {"kind": "prompt_completion", "id": "t", "topic": "x", "prompt": "Q", "completion": "A"}
    assert isinstance(_convert(own), PromptCompletionRecord)
    with pytest.raises(ValueError, match="extra: Extra inputs"):
        _convert({**own, "extra": 1})
    with pytest.raises(ValueError, match="topic: Field required"):
        _convert({key: value for key, value in own.items() if key != "topic"})
    with pytest.raises(ValueError, match="does not match any of the expected tags"):
        _convert({**own, "kind": "promptcompletion"})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("text", "must be an object with named fields, not a text"),
        ({}, "nothing that asks"),
        ({"frage": "Q", "antwort": "A"}, r"columns 'frage', 'antwort'; expected question \+ answer"),
        ({"question": "Q", "note": "x"}, "no answer in columns 'question', 'note'"),
        ({"text": "all in one"}, "nothing that asks in columns 'text'"),
        ({"question": "Q", "answer": ""}, "answer: empty"),
        ({"question": "  ", "answer": "A"}, "question: empty"),
        ({"question": "Q", "answer": NAN}, "answer: NaN"),
        ({"question": "Q", "answer": "nan"}, "answer: NaN"),
        ({"question": "Q", "answer": float("inf")}, "answer: NaN or infinite"),
        ({"question": "Q", "answer": True}, "answer: text is wanted, not true or false"),
        ({"question": "Q", "answer": {"x": 1}}, "answer: text is wanted, not an object"),
        ({"question": "Q\ud800", "answer": "A"}, "question: holds half a surrogate pair"),
        ({"messages": TURNS[:1]}, "there is no|at least 2"),
        ({"messages": TURNS[::-1]}, "the last message must be the assistant's"),
        ({"messages": [{"role": "tool", "content": "x"}, *TURNS]}, "messages.0: role 'tool' is not one of"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "messages.1: nothing is said"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [1]}]}, "calls of tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]]}, "only parts of type text"),
        ({"messages": "[{"}, "messages: begins like JSON, but is not"),
        ({"conversations": {"x": 1}}, "a list of turns is wanted"),
        ({"question": "Q", "options": ["x", "y"]}, "no answer"),
        ({"question": "Q", "options": ["x", "y"], "answer": NAN}, "answer: NaN"),
        ({"question": "Q", "options": ["x", "y"], "answer": ""}, "answer: empty"),
        ({"question": "Q", "options": ["x", "y"], "answer": "C"}, "'C' is neither a letter \\(A, B\\)"),
        ({"question": "Q", "options": ["x", "X "], "answer": "A"}, "stands there twice"),
        ({"question": "Q", "options": ["x"], "answer": "A"}, "at least 2"),
        ({"question": "Q", "options": ["x", None], "answer": "A"}, "options.1: text is wanted, not null"),
        ({"question": "Q", "options": ["b", "a"], "answer": "A"}, "'A' could mean option 1 or 2"),
        ({"question": "Q", "A": "x", "B": "", "C": "y", "answer": "A"}, "an option before 'c' is empty"),
        ({"A": "x", "B": "y", "answer": "A"}, "no question in columns"),
    ],
)
def test_a_row_that_cannot_be_used_says_which_field_and_why(row: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _convert(row)


def _mcq(answer: object, *options: str) -> dict[str, object]:
    return {"question": "Q", "options": list(options or ("x", "y", "z")), "answer": answer}


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([_mcq(1), _mcq(0)], "y"),
        ([_mcq(1.0), _mcq("0.0")], "y"),
        ([_mcq("1"), _mcq("3")], "x"),
        ([_mcq("2"), _mcq("B"), _mcq(3)], "y"),
        ([_mcq(4, "2", "4", "6"), _mcq(6, "2", "4", "6")], "4"),
    ],
)
def test_numbers_are_settled_for_the_whole_file(rows: list[dict[str, object]], right: str) -> None:
    record = _convert(*rows)
    assert isinstance(record, McqRecord)
    assert record.options[record.answer] == right


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([_mcq(1), _mcq(2)], "no row shows whether this file counts from 0 or from 1; write letters"),
        ([_mcq(0), _mcq(3)], "rows disagree"),
        ([_mcq(2, "1", "2", "3"), _mcq(0, "1", "2", "3")], "'2' could mean option 2 or 3"),
        ([_mcq(7), _mcq(0)], "'7' counts from 0, as this file does, but there are 3 options"),
    ],
)
def test_numbers_that_could_mean_two_things_are_refused(rows: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _convert(*rows)


def test_a_file_without_numbers_is_not_read_twice() -> None:
    def never() -> Any:
        raise AssertionError("read again")

    assert Converter(never).convert(_mcq("B"), 1).format == "multiple choice"


def test_counting_is_told_from_the_rows() -> None:
    three = ["x", "y", "z"]
    assert settle_counting([Asked(three, "B")]) is Counting.TEXT
    assert settle_counting([Asked(three, "0"), Asked(three, "2")]) is Counting.ZERO
    assert find_answer(Asked(three, "3"), Counting.ONE) == 2


def test_an_answer_may_be_spelt_like_its_labelled_option() -> None:
    record = _convert({"question": "Where?", "options": ["A) Paris", "B) Rome"], "answer": "B) Rome"})
    assert isinstance(record, McqRecord)
    assert (record.options, record.answer) == (("Paris", "Rome"), 1)


@pytest.mark.parametrize(
    "other",
    [{"question": "How many?", "answer": "12"}, {"kind": "mcq", "question": "Q", "options": ["a", "b"], "answer": 0}],
    ids=["no options", "our own"],
)
def test_rows_without_options_of_this_kind_do_not_say_what_numbers_mean(other: dict[str, Any]) -> None:
    record = _convert({"question": "Two and two?", "options": ["3", "4", "5", "6"], "answer": "4"}, other)
    assert isinstance(record, McqRecord)
    assert record.options[record.answer] == "4"
