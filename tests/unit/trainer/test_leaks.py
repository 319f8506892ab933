from __future__ import annotations

import pytest
from preceptor_contracts.messages import Message
from preceptor_contracts.records import ChatRecord, McqQuestion, McqRecord, PromptCompletionRecord
from preceptor_trainer.prepare.leaks import find_leaks, words

LONG = "How many patients who live in Leeds saw a cardiologist during March last year"


def _asks(text: str) -> PromptCompletionRecord:
    return PromptCompletionRecord(id="t", kind="prompt_completion", topic="x", prompt=text, completion="y")


def _question(text: str, passage: str = "") -> McqQuestion:
    return McqQuestion(
        id="e", kind="mcq", topic="x", group="g", question=text, options=("a", "b"), answer=0, passage=passage
    )


@pytest.mark.parametrize(
    "asked",
    [
        LONG,
        LONG.upper() + "?!",
        "Tell me: " + LONG[0].lower() + LONG[1:],
        " ".join(reversed(LONG.split())),
        LONG.replace("many", "\u201cmany\u201d"),
    ],
)
def test_the_same_question_in_other_clothes_is_a_leak(asked: str) -> None:
    assert [leak.question_id for leak in find_leaks([_asks(asked)], [_question(LONG)])] == ["e"]


@pytest.mark.parametrize("asked", ["Which doctors are paid most?", "How many patients live in Leeds?", "Leeds"])
def test_another_question_is_none(asked: str) -> None:
    assert find_leaks([_asks(asked)], [_question(LONG)]) == []


def test_a_short_question_leaks_when_it_is_the_same() -> None:
    assert find_leaks([_asks("hives?")], [_question("Hives")])


def test_every_user_turn_of_a_conversation_counts() -> None:
    turns = (
        Message(role="user", content=LONG),
        Message(role="assistant", content="12"),
        Message(role="user", content="And in York?"),
        Message(role="assistant", content="7"),
    )
    assert find_leaks([ChatRecord(id="t", kind="chat", topic="x", messages=turns)], [_question(LONG)])


def test_one_question_on_two_passages_is_two_questions() -> None:
    asked = "What is the main idea of the text?"
    record = McqRecord(
        id="t", kind="mcq", topic="x", question=asked, options=("a", "b"), answer=0, passage="Bees dance to tell way."
    )
    passage = "Rivers carve valleys over thousands of years while glaciers widen them."
    assert find_leaks([record], [_question(asked, passage)]) == []
    assert find_leaks([record], [_question(asked, record.passage)])


def test_stricter_limits_find_more() -> None:
    near = _asks("How many patients who live in York saw a dentist during March last year")
    assert find_leaks([near], [_question(LONG)]) == []
    assert find_leaks([near], [_question(LONG)], gram_limit=0.3, word_limit=0.6)


def test_words_drop_case_and_punctuation() -> None:
    assert words("Don\u2019t ASK: \uff21 1.5!") == ("don", "t", "ask", "a", "1", "5")
