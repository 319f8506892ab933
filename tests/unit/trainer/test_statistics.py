from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.report import Verdict
from preceptor_trainer.evaluate.statistics import (
    bootstrap_difference,
    brier,
    detectable_difference,
    expected_calibration_error,
    holm,
    judge,
    mcnemar,
    questions_needed,
    reliability_bins,
    sample_size,
    wilson,
)


# Source: Newcombe 1998, table I, Wilson without continuity correction.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_the_literature(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_in_range(case: tuple[int, int]) -> None:
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1


@pytest.mark.parametrize(
    ("only_base", "only_adapter", "p"),
    [(0, 0, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (3, 3, 1.0), (1, 9, 22 / 1024), (10, 2, 158 / 4096)],
)
def test_mcnemar_is_exact(only_base: int, only_adapter: int, p: float) -> None:
    assert mcnemar(only_base, only_adapter) == pytest.approx(p)


def test_calibration_error_is_the_weighted_gap() -> None:
    assert expected_calibration_error([0.95, 0.95, 0.55, 0.55], [True, True, True, False]) == pytest.approx(0.05)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0


def test_brier_counts_every_option() -> None:
    assert brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier([[0.0, 1.0]], [0]) == 2
    assert brier([[1.0, 0.0]], [0]) == 0


@pytest.mark.parametrize(
    ("n", "only_base", "only_adapter", "verdict"),
    [
        (100, 2, 30, Verdict.BETTER),
        (20, 0, 6, Verdict.BETTER),
        (19, 0, 19, Verdict.TOO_FEW),
        (100, 0, 5, Verdict.TOO_FEW),
        (100, 0, 0, Verdict.TOO_FEW),
        (100, 30, 2, Verdict.NOT_BETTER),
        (100, 10, 12, Verdict.NOT_BETTER),
        (100, 6, 6, Verdict.NOT_BETTER),
    ],
)
def test_the_verdict_follows_from_the_pairs(n: int, only_base: int, only_adapter: int, verdict: Verdict) -> None:
    assert judge(n, only_base, only_adapter).verdict is verdict


def test_a_worse_adapter_is_called_worse() -> None:
    assert "worse" in judge(100, 30, 2).reason


def test_the_sat_seeds_two_percentages_are_too_few_questions_however_the_pairs_fall() -> None:
    # 47.37 % and 73.68 % are 9 and 14 of 19; how many questions both got right was not told.
    n, base, adapter = 19, 9, 14
    splits = [(only_base, only_base + adapter - base) for only_base in range(n - adapter + 1)]
    assert len(splits) == 6
    for only_base, only_adapter in splits:
        assert mcnemar(only_base, only_adapter) >= 0.06
        judged = judge(n, only_base, only_adapter)
        assert judged.verdict is Verdict.TOO_FEW
        assert "19" in judged.reason
        size = sample_size(n, only_base, only_adapter)
        assert size.sentence.startswith("n is too small to tell: with n = 19")
        assert size.needed is not None
        assert size.needed > n


def test_the_bootstrap_interval_holds_the_difference_and_agrees_with_the_normal_approximation() -> None:
    low, high = bootstrap_difference(400, 20, 80)
    # Variance of a paired difference: (share of differing answers - difference squared) / n.
    half = 1.96 * ((0.25 - 0.15**2) / 400) ** 0.5
    assert (low, high) == pytest.approx((0.15 - half, 0.15 + half), abs=0.006)


def test_the_bootstrap_is_the_same_every_time_and_stays_in_range() -> None:
    assert bootstrap_difference(30, 3, 9) == bootstrap_difference(30, 3, 9)
    assert bootstrap_difference(5, 0, 0) == (0, 0)
    assert bootstrap_difference(1, 0, 1) == (1, 1)


def test_holm_corrects_for_the_number_of_pairs_and_keeps_their_order() -> None:
    # Worked by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below its forerunner), 0.5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_questions_needed_agrees_with_a_simulation() -> None:
    import numpy

    needed = questions_needed(0.3, 0.15)
    assert needed is not None
    drawn = numpy.random.default_rng(1).multinomial(needed, [0.075, 0.225, 0.7], size=2000)
    power = sum(mcnemar(int(lost), int(gained)) < 0.05 for lost, gained, _ in drawn) / 2000
    assert power == pytest.approx(0.8, abs=0.05)


def test_no_difference_needs_no_number_of_questions() -> None:
    assert questions_needed(0.3, 0) is None
    assert sample_size(100, 6, 6).needed is None
    assert "no difference" in sample_size(100, 6, 6).sentence


def test_more_questions_detect_smaller_differences() -> None:
    found = [detectable_difference(n, 0.3) for n in (20, 50, 200, 1000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.06
    assert detectable_difference(19, 0.3) == 1


def test_a_significant_difference_is_not_called_too_small_to_tell() -> None:
    assert "enough" in sample_size(100, 2, 30).sentence


def test_reliability_bins_count_every_answer_once() -> None:
    bins = reliability_bins([0.0, 0.05, 0.1, 0.95, 1.0], [False, True, True, True, False])
    assert [(item.low, item.n) for item in bins] == [(0, 2), (0.1, 1), (0.9, 2)]
    assert bins[-1].confidence == pytest.approx(0.975)
    assert bins[-1].accuracy == 0.5
