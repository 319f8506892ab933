"""The arithmetic of the report, and its words."""

import csv
from pathlib import Path

import pytest
from preceptor_contracts.mcq import Scoring

from bench.mcq.agreement import Compared
from bench.mcq.load import Split, Tried
from bench.mcq.report import Findings, goals, write_report
from bench.mcq.rounds import Round
from bench.mcq.summary import Measured, Pair, Side, ratios, saved, spread

RATES = {
    Side.LETTERS: 20.0,
    Side.GENERATION: 8.0,
    Side.LM_EVAL_LETTERS: 5.0,
    Side.OPTIONS: 6.0,
    Side.LM_EVAL_OPTIONS: 6.0,
    Side.PASSAGES: 4.0,
    Side.LM_EVAL_PASSAGES: 2.0,
    Side.LETTERS_ALONE: 9.0,
    Side.GENERATION_ALONE: 2.0,
}
TRIED = [Tried(Split(32, 1), 4.0), Tried(Split(4, 8), 6.5)]
SAME = Compared("q1", -0.0002, 1e-6, (0, 1, 1), (0, 1, 1))
OTHER = Compared("q2", -0.0002, 1e-6, (0, 1, 2), (0, 1, 1))


def measured(number: int, side: Side, rate: float) -> Measured:
    return Measured(number, side, 12, 12 / rate, 0.25, 1200, 300, 12)


def a_round(number: int, *compared: Compared, slower: float = 1.0) -> Round:
    """A round; `slower` is what the machine did to every side alike."""
    return Round(
        measured=tuple(measured(number, side, rate / slower) for side, rate in RATES.items()),
        pairs=tuple(
            Pair(number, scoring, passage, 0.2, 0.2 * slower, warm * slower, 300, cached)
            for scoring, warm, cached in ((Scoring.LETTERS, 0.1, 256), (Scoring.OPTIONS, 0.19, 0))
            for passage in ("one", "two")
        ),
        compared=compared,
        letters=(("q1", True), ("q2", number != 2)),
        unread=1,
    )


def test_ratios_are_taken_within_a_round() -> None:
    # The second round ran on a machine three times as slow: no ratio may notice.
    both = [*a_round(1).measured, *a_round(2, slower=3.0).measured]
    assert ratios(both, Side.LETTERS, Side.GENERATION) == pytest.approx([2.5, 2.5])


def test_a_round_without_an_opponent_is_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([measured(1, Side.LETTERS, 1.0)], Side.LETTERS, Side.GENERATION)


def test_what_the_cache_saves_is_warm_against_cold() -> None:
    pairs = [*a_round(1).pairs, *a_round(2, slower=2.0).pairs]
    assert saved(pairs, Scoring.LETTERS) == pytest.approx([0.5, 0.5])
    assert saved(pairs, Scoring.OPTIONS) == pytest.approx([0.05, 0.05])


def test_a_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="Nothing"):
        spread([])


def test_goals_are_held_against_medians() -> None:
    words = [goal.word for goal in goals(Findings([a_round(1, SAME, OTHER)], TRIED))]
    alone, batch, letters, options, passages, by_sum, by_token, by_byte, cached, uncached = words
    assert {alone, letters, options, passages, by_sum, by_token, cached} == {"reached"}
    assert {batch, by_byte, uncached} == {"**not reached**"}


def test_what_was_not_measured_is_no_success() -> None:
    rows = [goal for goal in goals(Findings([a_round(1)], TRIED)) if "same option" in goal.measure]
    assert [(goal.reached, goal.word) for goal in rows] == [(None, "not measured")] * 3


def test_the_report_names_every_item_that_was_chosen_differently(tmp_path: Path) -> None:
    write_report(tmp_path, Findings([a_round(1, SAME), a_round(2, OTHER)], TRIED), {"processor": "an abacus"})
    text = (tmp_path / "report.md").read_text()
    assert "Chosen differently, sum: 0." in text
    assert "Chosen differently, per byte: 1. Items: q2." in text
    assert "on 1 of 2 items. Items: q2." in text
    assert "| processor | an abacus |" in text
    assert "32 x 1 4.00, 4 x 8 6.50 (taken)" in text
    assert "2 of 24 held no letter" in text


def test_the_figures_lie_beside_the_report(tmp_path: Path) -> None:
    write_report(tmp_path, Findings([a_round(1), a_round(2)], TRIED), {})
    with (tmp_path / "rounds.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * len(Side)
    assert (rows[0]["side"], float(rows[0]["questions_per_second"])) == ("letters", 20.0)
    with (tmp_path / "prefix.csv").open() as stream:
        assert [row["scoring"] for row in csv.DictReader(stream)] == (["letters"] * 2 + ["options"] * 2) * 2
