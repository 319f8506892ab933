from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from preceptor_contracts.domains import Domain, find_domain
from preceptor_contracts.files import canonical_json, sha256_bytes
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.records import RECORDS
from preceptor_trainer.prepare.dataset import read_exam
from preceptor_trainer.prepare.draft import Draft, write_draft
from preceptor_trainer.prepare.duplicates import Repeat
from preceptor_trainer.prepare.reading import look_at
from preceptor_trainer.prepare.tally import Tally

from tests.house.tree import ROOT
from tests.unit.trainer.fixtures import write_domain, write_jsonl

LONG = (
    "A child of four years vomits twice within ten minutes of eating a boiled egg and then becomes pale and very "
    "sleepy so what should the parents do first"
)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return find_domain(write_domain(tmp_path / "domains").parent, "plants").domain


def _draft(domain: Domain, tmp_path: Path, rows: Sequence[dict[str, object]]) -> Draft:
    write_jsonl(tmp_path / "rows.jsonl", list(rows))
    folder = tmp_path / "work"
    folder.mkdir()
    return write_draft(domain, look_at(tmp_path / "rows.jsonl"), (), folder)


def _pairs(found: Tally[Repeat]) -> list[tuple[int, int]]:
    return [(pair.kept, pair.other) for pair in found.first]


def _qa(question: str, answer: str) -> dict[str, object]:
    return {"question": question, "answer": answer}


def test_the_same_in_other_case_and_white_space_is_an_exact_duplicate(domain: Domain, tmp_path: Path) -> None:
    rows = [_qa("Hives?", "Yes."), _qa("Other?", "No."), _qa(" hives?\n", "YES"), _qa("HIVES?", "yes.")]
    draft = _draft(domain, tmp_path, rows)
    assert _pairs(draft.repeats.exact) == [(0, 2), (0, 3)]
    assert len(draft.lines) == 2
    assert json.loads(draft.lines[1])["prompt"] == "Other?"


@pytest.mark.parametrize(
    "other",
    [LONG.lower() + "?!", LONG.replace("boiled", "raw"), LONG.replace(" and then", ", then"), "“" + LONG + "”"],
)
def test_all_but_the_same_words_with_the_same_answer_are_a_near_duplicate(
    domain: Domain, tmp_path: Path, other: str
) -> None:
    draft = _draft(domain, tmp_path, [_qa(LONG, "Call an ambulance."), _qa(other, "call an ambulance")])
    assert draft.repeats.exact.count + draft.repeats.near.count == 1
    assert len(draft.lines) == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (LONG, LONG.replace("child of four years", "girl who is almost five years old").replace("boiled", "raw")),
        (LONG + " at 4 am", LONG + " at 5 am"),
        (LONG, LONG.replace("vomits", "never vomits")),
        (LONG + " in Leeds", LONG + " in York"),
        (LONG + " 'flu'", LONG + " 'asthma'"),
        (LONG + " if x < 3", LONG + " if x > 3"),
        ("Can I eat nuts?", "Can I eat peanuts?"),
        ("How many visits in 2023?", "How many visits in 2024?"),
    ],
)
def test_other_words_numbers_names_negations_and_symbols_are_other_questions(
    domain: Domain, tmp_path: Path, one: str, two: str
) -> None:
    draft = _draft(domain, tmp_path, [_qa(one, "Yes."), _qa(two, "Yes.")])
    assert len(draft.lines) == 2


def test_a_near_duplicate_has_the_same_answer(domain: Domain, tmp_path: Path) -> None:
    assert len(_draft(domain, tmp_path, [_qa(LONG, "Wait."), _qa(LONG + "?!", "Call an ambulance.")]).lines) == 2


def test_one_question_with_two_answers_is_a_contradiction(domain: Domain, tmp_path: Path) -> None:
    draft = _draft(domain, tmp_path, [_qa("Hives?", "Yes."), _qa("hives?", "No."), _qa("Hives?", "yes")])
    assert _pairs(draft.repeats.contradictions) == [(0, 1)]


def test_options_in_another_order_contradict_each_other_too(domain: Domain, tmp_path: Path) -> None:
    def mcq(options: list[str], answer: str) -> dict[str, object]:
        return {"question": "Which?", "options": options, "answer": answer}

    rows = [mcq(["red", "blue"], "A"), mcq(["blue", "red"], "A"), mcq(["blue", "red"], "B"), mcq(["red", "tan"], "B")]
    draft = _draft(domain, tmp_path, rows)
    assert _pairs(draft.repeats.contradictions) == [(0, 1)]
    assert _pairs(draft.repeats.exact) == [(0, 2)]


def test_one_question_on_two_passages_is_two_questions(domain: Domain, tmp_path: Path) -> None:
    rows = [{**_qa("What is it about?", answer), "passage": f"On {answer}."} for answer in ("bees", "rivers")]
    assert _draft(domain, tmp_path, rows).repeats.contradictions.count == 0


def test_many_rows_that_are_all_alike_are_compared_quickly(domain: Domain, tmp_path: Path) -> None:
    rows = [_qa(LONG + " " + "x" * (number % 40 + 1), "Yes.") for number in range(1500)]
    draft = _draft(domain, tmp_path, rows)
    assert draft.repeats.exact.count == 1460
    assert len(draft.lines) < 10


@pytest.mark.parametrize("name", ["allergy", "sql"])
def test_the_shipped_domains_come_through_unchanged(name: str, tmp_path: Path) -> None:
    folder = find_domain(ROOT / "domains", name)
    draft = write_draft(folder.domain, look_at(folder.train), read_exam(folder), tmp_path)
    assert draft.problems.count == draft.cleaned == draft.repeats.exact.count == draft.repeats.near.count == 0
    assert draft.repeats.contradictions.count == 0
    assert draft.leak_summary is None
    assert draft.privacy.counts == {}
    records = read_jsonl(folder.train, RECORDS)
    text = "".join(canonical_json(record.model_dump(mode="json")) + "\n" for record in records)
    assert draft.sha256 == sha256_bytes(text.encode())


def test_two_questions_behind_one_long_context_stay_two(domain: Domain, tmp_path: Path) -> None:
    context = " ".join(f"word{at}" for at in range(300))
    rows = [
        {"context": context, **_qa("Is the shop open on Sundays?", "Yes.")},
        {"context": context, **_qa("Are dogs allowed inside the reading room?", "Yes.")},
    ]
    draft = _draft(domain, tmp_path, rows)
    assert (draft.repeats.near.count, len(draft.lines)) == (0, 2)


def test_multiple_choice_contradicts_by_the_options_text_and_not_by_its_letter(domain: Domain, tmp_path: Path) -> None:
    layout = domain.mcq
    assert layout is not None
    by_letter = domain.model_copy(update={"mcq": layout.model_copy(update={"scoring": Scoring.LETTERS})})
    capital, planet = "What is the capital of France?", "Which planet is red?"
    rows: list[dict[str, object]] = [
        {"question": capital, "A": "Paris", "B": "Rome", "answer": "A"},
        {"question": capital, "A": "Rome", "B": "Paris", "answer": "B"},
        {"question": planet, "A": "Mars", "B": "Venus", "answer": "A"},
        {"question": planet, "A": "Venus", "B": "Mars", "answer": "A"},
    ]
    assert _pairs(_draft(by_letter, tmp_path, rows).repeats.contradictions) == [(2, 3)]
