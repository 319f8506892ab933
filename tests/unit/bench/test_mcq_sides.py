"""What the sides are asked, and how their answers are read."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from preceptor_contracts.domains import load_domain
from preceptor_contracts.mcq import LABELS, Scoring
from preceptor_contracts.prompts import render_mcq

from bench.mcq.agreement import NORMALISATIONS, best, compare
from bench.mcq.asking import OptionScore, first_letter, in_flight
from bench.mcq.harness import doc_of
from bench.mcq.items import Passage, load_exam, load_passages, share
from bench.mcq.rounds import copies, read_counters
from bench.mcq.stack import SOURCE, Copy, write_copy

EXAM = load_exam(SOURCE / "exam.jsonl")
PASSAGES = load_passages()


def test_there_is_enough_to_ask() -> None:
    assert len(EXAM) >= 100
    assert {len(item.mcq.options) for item in EXAM} == {4}
    assert len(PASSAGES) >= 12
    assert len({item.id for passage in PASSAGES for item in passage.items}) == 4 * len(PASSAGES)


@pytest.mark.parametrize("passage", PASSAGES, ids=lambda passage: passage.id)
def test_a_passage_is_of_the_promised_shape(passage: Passage) -> None:
    assert 150 <= len(passage.passage.split()) <= 250
    assert [len(item.mcq.options) for item in passage.items] == [4] * 4
    assert all(item.mcq.passage == passage.passage for item in passage.items)


def test_no_place_is_right_more_often_than_another() -> None:
    answers = [item.mcq.answer for passage in PASSAGES for item in passage.items]
    assert [answers.count(index) for index in range(4)] == [len(answers) // 4] * 4


def test_the_rounds_together_take_each_once() -> None:
    parts = [share(EXAM, number, 3) for number in range(3)]
    assert sorted(item.id for part in parts for item in part) == sorted(item.id for item in EXAM)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("B) Within two hours.", 1),
        ("(C)", 2),
        ("**D**.", 3),
        ("The answer is C, since D is wrong.", 2),
        ("Because it itches", None),
        ("Don't know", None),
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_first_letter_that_stands_alone_is_the_answer(text: str, index: int | None) -> None:
    assert first_letter(text, LABELS[:4]) == index


async def test_jobs_keep_their_order_and_their_limit() -> None:
    running = most = 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002 * (9 - number))
        running -= 1
        return number

    assert await in_flight(3, [partial(job, number) for number in range(9)]) == list(range(9))
    assert most == 3


def test_a_copy_differs_from_the_domain_by_its_number_and_scoring(tmp_path: Path) -> None:
    source = load_domain(SOURCE).domain
    one = write_copy(Copy("letters-1", Scoring.LETTERS, 1007), tmp_path)
    assert one.system == f"Session 1007. {source.system}"
    assert (one.name, one.mcq and one.mcq.scoring) == ("letters-1", Scoring.LETTERS)
    assert one.safety == source.safety


def test_no_two_copies_share_a_beginning() -> None:
    numbers = [copy.number for copy in copies(3)]
    assert len(set(numbers)) == len(numbers)
    assert {len(str(number)) for number in numbers} == {4}


@pytest.mark.parametrize("scoring", Scoring)
def test_lm_eval_is_given_what_our_scoring_scores(tmp_path: Path, scoring: Scoring) -> None:
    domain = write_copy(Copy("copy", scoring, 1000), tmp_path)
    item = PASSAGES[0].items[1]
    doc = doc_of(domain, item)
    assert doc["options"] == (["A", "B", "C", "D"] if scoring is Scoring.LETTERS else list(item.mcq.options))
    assert doc["prompt"] == render_mcq(domain, item.mcq)[1].content
    assert doc["answer"] == item.mcq.answer


def test_choices_are_compared_under_each_normalisation() -> None:
    options = ("no", "yes, and more of it", "perhaps")
    scores = (OptionScore(-4.0, 1), OptionScore(-9.0, 6), OptionScore(-6.0, 2))
    found = compare("x", options, scores, [-4.25, -9.25, -6.25])
    assert [found.offset, found.spread] == pytest.approx([-0.25, 0])
    assert dict(zip(NORMALISATIONS, found.ours, strict=True)) == {"sum": 0, "per token": 1, "per byte": 1}
    assert found.reference == found.ours


def test_another_choice_of_lm_eval_shows() -> None:
    found = compare("x", ("a", "b"), (OptionScore(-1.0, 1), OptionScore(-1.1, 1)), [-1.2, -1.1])
    assert (found.ours[0], found.reference[0]) == (0, 1)
    assert found.spread == pytest.approx(0.2)


def test_sides_that_scored_other_options_are_not_compared() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        compare("x", ("a", "b"), (OptionScore(-1.0, 1), OptionScore(-1.1, 1)), [-1.0])


def test_the_first_of_equals_is_best() -> None:
    assert best([-2.0, -1.0, -1.0]) == 1


def test_counters_are_read_and_added_up() -> None:
    text = (
        "# TYPE vllm:prompt_tokens_total counter\n"
        'vllm:prompt_tokens_total{engine="0",model_name="base"} 1200.0\n'
        'vllm:prompt_tokens_total{engine="1",model_name="base"} 34.0\n'
        'vllm:prompt_tokens_created{engine="0"} 1.7e+09\n'
        'vllm:prefix_cache_hits_total{engine="0"} 5.0\n'
        "vllm:generation_tokens_total 1e+03\n"
    )
    assert read_counters(text) == (1234, 5, 1000)


def test_a_missing_counter_is_named() -> None:
    with pytest.raises(ValueError, match="prefix_cache_hits"):
        read_counters("vllm:prompt_tokens_total 1.0\n")
