from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.messages import Message
from preceptor_contracts.records import (
    ChatRecord,
    InstructionRecord,
    McqQuestion,
    McqRecord,
    PromptCompletionRecord,
)
from preceptor_trainer.prepare.leaks import ExamIndex, Leak, LeakTally, find_leaks, words

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


def test_an_exam_question_inside_a_longer_text_is_a_leak() -> None:
    story = "Yesterday the head of the clinic came in and asked all of us. " * 4 + LONG + "? Nobody knew. " * 3
    [leak] = find_leaks([_asks(story)], [_question(LONG)])
    assert leak.method == "ngram"
    [leak] = find_leaks([_asks("Tell me").model_copy(update={"completion": story})], [_question(LONG)])
    assert leak.method == "ngram"


def test_how_a_leak_was_found_is_told_with_both_texts() -> None:
    [exact] = find_leaks([_asks(LONG.upper() + "?")], [_question(LONG)])
    [near] = find_leaks([_asks("Please tell: " + LONG)], [_question(LONG)])
    assert (exact.method, near.method) == ("exact", "near")
    assert (exact.asked, exact.examined) == (LONG.upper() + "?", LONG)


WORDS = st.lists(
    st.sampled_from(["how", "many", "who", "live", "in", "the", "old", "new", "town", "of", "leeds", "york"]),
    max_size=14,
)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=6))
def test_the_index_finds_what_comparing_with_every_question_finds(asked: list[str], exam: list[list[str]]) -> None:
    questions = [_question(" ".join(text) or "x").model_copy(update={"id": str(at)}) for at, text in enumerate(exam)]
    record = _asks(" ".join(asked) or "y")
    found = {leak.question_id for leak in ExamIndex(questions).leaks(record) if leak.method != "ngram"}

    def grams(text: str) -> frozenset[object]:
        split = words(text)
        return frozenset(split[at : at + 4] for at in range(len(split) - 3))

    def share(one: frozenset[object], two: frozenset[object]) -> float:
        return len(one & two) / len(one | two) if one and two else 0.0

    expected = {
        question.id
        for question in questions
        if words(record.prompt) == words(question.question)
        or share(frozenset(words(record.prompt)), frozenset(words(question.question))) >= 0.8
        or share(grams(record.prompt), grams(question.question)) >= 0.6
    }
    assert found == expected


def test_scripts_without_spaces_are_compared_by_character() -> None:
    exam = "过敏性鼻炎的常见症状有哪些呢"
    assert find_leaks([_asks("请问" + exam)], [_question(exam)])
    assert find_leaks([_asks("高血压患者应该注意什么")], [_question(exam)]) == []


def test_leaks_of_dropped_records_do_not_count() -> None:
    tally = LeakTally()
    for position, record in enumerate(["a", "b", "b", "c"]):
        tally.add(position, Leak(record, f"e{position % 2}", 1.0, 0.9, "exact", "asked" * 100, "x"))
    first, summary = tally.among(np.array([False, True, False, False]))
    assert [leak.record_id for leak in first] == ["a", "b", "c"]
    assert len(first[0].asked) == 300
    assert summary is not None
    assert (summary.pairs, summary.records, summary.questions) == (3, 3, 2)
    assert tally.among(np.ones(4, dtype=np.bool_)) == ([], None)


SHORT = "When does the library open on Mondays?"


@pytest.mark.parametrize(
    "record",
    [
        InstructionRecord(
            id="t", kind="instruction", topic="x", instruction="Answer briefly.", input=SHORT, output="At nine."
        ),
        _asks(f"The library is in Mill Lane. It has two floors.\n\n{SHORT}"),
        _asks(f"Question: {SHORT}\nAnswer:"),
    ],
    ids=["instruction", "context", "layout"],
)
def test_a_short_question_behind_other_text_is_a_leak(record: InstructionRecord | PromptCompletionRecord) -> None:
    assert find_leaks([record], [_question(SHORT)])


def _mcq(question: str, options: tuple[str, ...], passage: str = "") -> McqRecord:
    return McqRecord(id="t", kind="mcq", topic="x", question=question, options=options, answer=0, passage=passage)


def _mcq_question(question: str, options: tuple[str, ...], passage: str = "") -> McqQuestion:
    return McqQuestion(
        id="e", kind="mcq", topic="x", group="g", question=question, options=options, answer=0, passage=passage
    )


def test_a_stem_that_many_questions_share_is_no_leak() -> None:
    stem = "Which of the following is true?"
    pets = _mcq(stem, ("Cats purr when content.", "Dogs lay eggs."))
    assert find_leaks([pets], [_mcq_question(stem, ("Two and two make four.", "Seven is even."))]) == []
    assert find_leaks([pets], [_mcq_question(stem, ("Content cats purr.", "Fish can fly."))])


def test_two_questions_on_one_passage_are_two_questions() -> None:
    passage = " ".join(f"word{at}" for at in range(120))
    trained = _mcq("Why did the baker leave the village?", ("He was ill.", "He was poor."), passage)
    other = _mcq_question("Who bought the empty mill in spring?", ("He was ill.", "He was poor."), passage)
    assert find_leaks([trained], [other]) == []
    assert find_leaks(
        [trained], [_mcq_question("Why did the baker leave this village?", ("He was ill.", "x"), passage)]
    )
