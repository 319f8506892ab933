"""The shipped data keeps its promises: size, topics, and no exam question in the training data."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from preceptor_contracts.domains import DomainFolder, load_domain
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.records import (
    QUESTIONS,
    RECORDS,
    McqQuestion,
    McqRecord,
    PromptCompletionRecord,
    Question,
    Record,
    SqlQuestion,
    asked_text,
)

DOMAINS = Path(__file__).parents[3] / "domains"
NAMES = sorted(path.parent.name for path in DOMAINS.glob("*/domain.yaml"))
HEALTH = ["allergy", "cardiology", "oncology"]


class Least(NamedTuple):
    """What a domain promises to hold at least."""

    train: int
    exam: int
    group: int
    topics: int = 8


PROMISED = {
    "allergy": Least(400, 120, 60),
    # Its own checks are in `test_sat_reading.py`.
    "sat-reading": Least(240, 80, 24, topics=7),
    "sql": Least(400, 120, 60),
}
LEAST = Least(250, 100, 40)
"""What every other domain promises."""


def rows(name: str) -> tuple[DomainFolder, tuple[Record, ...], tuple[Question, ...]]:
    folder = load_domain(DOMAINS / name)
    return folder, read_jsonl(folder.train, RECORDS), read_jsonl(folder.exam, QUESTIONS)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def jaccard(left: set[tuple[str, ...]], right: set[tuple[str, ...]]) -> float:
    return len(left & right) / len(left | right) if left and right else 0.0


def with_passage(row: Record | Question) -> str:
    """What a row asks; the same question on another passage is another question."""
    passage = row.passage if isinstance(row, McqRecord | McqQuestion) else ""
    return f"{passage} {asked_text(row)}".strip()


def test_the_shipped_domains_are_found() -> None:
    assert {*HEALTH, "sat-reading", "sql"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_ids_and_topics(name: str) -> None:
    _, train, exam = rows(name)
    least = PROMISED.get(name, LEAST)
    assert len(train) >= least.train
    assert len(exam) >= least.exam
    assert all(count == 1 for count in Counter(row.id for row in (*train, *exam)).values())
    assert len({row.topic for row in train}) >= least.topics
    assert {row.topic for row in exam} <= {row.topic for row in train}
    assert min(Counter(question.group for question in exam).values()) >= least.group


@pytest.mark.parametrize("name", NAMES)
def test_no_exam_question_nor_near_duplicate_is_trained(name: str) -> None:
    _, train, exam = rows(name)
    asked = [(row.id, " ".join(words(with_passage(row))), grams(with_passage(row), 4)) for row in train]
    known = {normal for _, normal, _ in asked}
    for question in exam:
        text = with_passage(question)
        assert " ".join(words(text)) not in known, question.id
        asked_in_exam = grams(text, 4)
        for row_id, _, trained in asked:
            assert jaccard(asked_in_exam, trained) < 0.6, (question.id, row_id)


@pytest.mark.parametrize("name", HEALTH)
def test_a_health_domain_mixes_kinds_and_balances_answers(name: str) -> None:
    _, train, exam = rows(name)
    kinds = Counter(record.kind for record in train)
    assert min(kinds["chat"], kinds["mcq"]) >= 100
    answers = Counter(question.answer for question in exam if isinstance(question, McqQuestion))
    assert max(answers.values()) <= 0.3 * len(exam)
    trained = {record.fact for record in train}
    for question in exam:
        assert (question.fact in trained) == (question.group == "trained_facts"), question.id


@pytest.mark.parametrize("name", HEALTH)
def test_the_length_of_an_option_does_not_give_the_answer_away(name: str) -> None:
    _, _, exam = rows(name)
    ranks = []
    for question in exam:
        assert isinstance(question, McqQuestion)
        lengths = [len(option) for option in question.options]
        right = lengths[question.answer]
        ranks.append(sum(one < right for one in lengths) + (lengths.count(right) - 1) / 2)
    assert 1.2 <= sum(ranks) / len(ranks) <= 1.8  # 1.5 is the middle of four


@pytest.mark.parametrize("name", HEALTH)
def test_the_sources_list_every_fact(name: str) -> None:
    folder, train, exam = rows(name)
    listed = set(re.findall(r"^(?:- )?(\S+) \|", (folder.path / "SOURCES.md").read_text(), re.MULTILINE))
    assert {row.fact for row in (*train, *exam)} == listed


def test_sql_queries_run_and_held_out_shapes_are_held_out() -> None:
    folder, train, exam = rows("sql")
    database = sqlite3.connect(":memory:")
    database.executescript(folder.database.read_text())
    shapes = {record.shape for record in train if isinstance(record, PromptCompletionRecord)}
    for record in train:
        assert isinstance(record, PromptCompletionRecord)
        database.execute(record.completion)
    for question in exam:
        assert isinstance(question, SqlQuestion)
        assert database.execute(question.query).fetchall(), question.id
        assert (question.shape in shapes) == (question.group != "held_out_shapes"), question.id
    database.close()


SAFE = [
    "What is anaphylaxis?",
    "What are the signs of anaphylaxis?",
    "How do I use an EpiPen?",
    "Can a wasp sting cause swelling of the throat?",
    "Which foods cause tongue itching?",
    "When should adrenaline be given?",
    "How is breathing affected by asthma?",
]
URGENT = [
    "I can\u2019t breathe after eating prawns",
    "cannot breathe help",
    "My throat is closing up and I'm scared",
    "her tongue is swelling after the sesame bar",
    "My husband just collapsed after a wasp sting",
    "I think I'm having anaphylaxis right now",
    "I used my EpiPen five minutes ago, what next?",
]


@pytest.mark.parametrize(("text", "urgent"), [*((text, False) for text in SAFE), *((text, True) for text in URGENT)])
def test_emergency_rule_tells_what_happens_now_from_what_is_asked(text: str, urgent: bool) -> None:
    domain = load_domain(DOMAINS / "allergy").domain
    assert bool(domain.triggered(text)) is urgent


@pytest.mark.parametrize("name", HEALTH)
def test_no_exam_question_sets_a_safety_rule_off(name: str) -> None:
    folder, _, exam = rows(name)
    assert not [question.id for question in exam if folder.domain.triggered(asked_text(question))]
