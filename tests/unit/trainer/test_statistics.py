from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.report import Verdict
from preceptor_trainer.evaluate.statistics import brier, expected_calibration_error, judge, mcnemar, wilson


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
