"""The reading domain keeps its promises: passages, explanations, balance, and an exam on passages not trained on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from preceptor_contracts.domains import load_domain
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.prompts import mcq_candidates, render_mcq
from preceptor_contracts.records import QUESTIONS, RECORDS, McqQuestion, McqRecord

FOLDER = Path(__file__).parents[3] / "domains" / "sat-reading"
SKILLS = {
    "central-ideas-and-details",
    "command-of-evidence-quantitative",
    "command-of-evidence-textual",
    "cross-text-connections",
    "inferences",
    "text-structure-and-purpose",
    "words-in-context",
}
FAMILIES = {"literature", "science", "history", "humanities"}
Row = McqRecord | McqQuestion


@cache
def train() -> tuple[McqRecord, ...]:
    records = read_jsonl(load_domain(FOLDER).train, RECORDS)
    return tuple(record for record in records if isinstance(record, McqRecord))


@cache
def exam() -> tuple[McqQuestion, ...]:
    questions = read_jsonl(load_domain(FOLDER).exam, QUESTIONS)
    return tuple(question for question in questions if isinstance(question, McqQuestion))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def share_right(rows: Sequence[Row], rank: Callable[[Row, str], float]) -> float:
    """Share that a reader gets right who always takes an option of the highest rank; ties are split."""
    total = 0.0
    for row in rows:
        ranks = [rank(row, option) for option in row.options]
        total += (ranks[row.answer] == max(ranks)) / ranks.count(max(ranks))
    return total / len(rows)


def words_from_passage(row: Row, option: str) -> float:
    """Share of an option's words that stand in its passage."""
    used = set(words(option))
    return len(used & set(words(row.passage))) / len(used)


def test_there_are_enough_passages_and_questions() -> None:
    assert len({row.passage for row in train()}) >= 60
    assert len(train()) >= 240
    assert len({row.passage for row in exam()}) >= 24
    assert len(exam()) >= 80


def test_no_passage_of_the_exam_is_trained_on() -> None:
    assert not {row.passage for row in train()} & {row.passage for row in exam()}
    assert not {row.fact for row in train()} & {row.fact for row in exam()}
    known = [set(zip(text, text[1:], text[2:], strict=False)) for text in {tuple(words(r.passage)) for r in train()}]
    for passage in {row.passage for row in exam()}:
        text = words(passage)
        grams = set(zip(text, text[1:], text[2:], strict=False))
        assert max(len(grams & other) / len(grams) for other in known) < 0.1, passage


@pytest.mark.parametrize("rows", [train, exam], ids=["train", "exam"])
def test_a_passage_has_one_id_and_its_length_is_an_sat_one(rows: Callable[[], Sequence[Row]]) -> None:
    passages = defaultdict(set)
    for row in rows():
        passages[row.fact].add(row.passage)
    assert all(len(texts) == 1 for texts in passages.values())
    assert len({text for texts in passages.values() for text in texts}) == len(passages)
    assert all(70 <= len(words(text)) <= 130 for texts in passages.values() for text in texts)


@pytest.mark.parametrize("rows", [train, exam], ids=["train", "exam"])
def test_every_question_has_skill_difficulty_and_explanation(rows: Callable[[], Sequence[Row]]) -> None:
    for row in rows():
        assert row.topic in SKILLS, row.id
        assert row.difficulty, row.id
        assert len(words(row.explanation)) >= 12, row.id
        assert len(row.options) == 4, row.id
        assert row.source == "original, written for Preceptor", row.id
        if row.topic == "cross-text-connections":
            assert "Text 1\n" in row.passage, row.id
            assert "Text 2\n" in row.passage, row.id
        if row.topic == "command-of-evidence-quantitative":
            assert " | " in row.passage, row.id
    assert {row.topic for row in rows()} == SKILLS


@pytest.mark.parametrize("rows", [train, exam], ids=["train", "exam"])
def test_words_in_quotation_marks_stand_in_the_passage(rows: Callable[[], Sequence[Row]]) -> None:
    for row in rows():
        passage = " ".join(row.passage.casefold().split())
        for option in row.options:
            for quoted in re.findall(r'"([^"]+)"', option):
                assert quoted.casefold() in passage, (row.id, quoted)


@pytest.mark.parametrize("rows", [train, exam], ids=["train", "exam"])
def test_right_options_are_not_known_by_place_length_or_shared_words(rows: Callable[[], Sequence[Row]]) -> None:
    places = Counter(row.answer for row in rows())
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) - min(places.values()) <= 0.05 * len(rows())
    assert share_right(rows(), lambda row, option: len(option)) <= 0.33
    assert share_right(rows(), lambda row, option: -len(option)) <= 0.33
    assert share_right(rows(), words_from_passage) <= 0.33
    assert share_right(rows(), lambda row, option: -words_from_passage(row, option)) <= 0.38


def test_the_exam_asks_about_all_families() -> None:
    groups = Counter(question.group for question in exam())
    assert set(groups) == FAMILIES
    assert min(groups.values()) >= 20


def test_what_is_learned_is_the_option_and_what_is_asked_holds_the_passage_and_not_the_options() -> None:
    domain = load_domain(FOLDER).domain
    for row in exam():
        asked = render_mcq(domain, row)[-1].content
        assert asked.startswith(row.passage), row.id
        assert mcq_candidates(domain, row)[row.answer] == row.options[row.answer]
    assert domain.mcq is not None
    assert domain.mcq.explain is None


def test_no_explanation_names_an_option_by_its_place() -> None:
    place = re.compile(
        r"\b(first|second|third|fourth|last)( and (second|third|last|fourth))? (choice|option|quotation)s?\b"
    )
    named = [row.id for row in (*train(), *exam()) if place.search(row.explanation.casefold())]
    assert named == []
