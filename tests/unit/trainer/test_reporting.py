from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.report import Verdict
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.evaluate.graders import Graded
from preceptor_trainer.evaluate.reliability import write_plot
from preceptor_trainer.evaluate.rendering import report_markdown
from preceptor_trainer.evaluate.reporting import Circumstances, keep_report, make_report
from preceptor_trainer.evaluate.sitting import Sitting

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
ABOUT = Circumstances("plants", "plants-run", "0" * 64, 3.21, "fake 1")


def _rows(base_right: int, adapter_right: int, n: int, *, probabilities: bool = True) -> Sitting:
    rows = []
    sides: list[tuple[str, int]] = [("base", base_right), ("adapter", adapter_right)]
    for side, right in sides:
        for at in range(n):
            hit = at < right
            graded = Graded(
                answer="A" if hit else "B",
                expected="A",
                correct=hit,
                probabilities=(0.8, 0.2) if probabilities and hit else (0.2, 0.8) if probabilities else None,
                answer_index=0 if probabilities else None,
            )
            rows.append(
                AnswerRow(
                    question=f"q{at}",
                    side=side,
                    served=f"plants:{side}",
                    group="near" if at % 2 else "trained",
                    topic=f"t{at % 3}",
                    seconds=0.1,
                    graded=graded,
                )
            )
    return Sitting(tuple(rows))


def test_the_report_compares_both_sides_in_all_by_group_and_by_topic() -> None:
    report = make_report(_rows(10, 28, 40), ABOUT)
    assert (report.n, report.base.correct, report.adapter.correct) == (40, 10, 28)
    assert report.difference == pytest.approx(0.45)
    assert report.verdict is Verdict.BETTER
    assert report.mcnemar_p == pytest.approx(2 / 2**18)
    assert {name: item.n for name, item in report.groups.items()} == {"near": 20, "trained": 20}
    assert sum(item.n for item in report.topics.values()) == 40


def test_calibration_is_reported_where_there_are_probabilities() -> None:
    report = make_report(_rows(10, 28, 40), ABOUT)
    assert [item.served for item in report.calibration] == ["plants:base", "plants:adapter"]
    assert report.calibration[1].brier < report.calibration[0].brier
    assert make_report(_rows(10, 28, 40, probabilities=False), ABOUT).calibration == ()


def test_the_same_answers_on_both_sides_are_too_few() -> None:
    assert make_report(_rows(10, 10, 40), ABOUT).verdict is Verdict.TOO_FEW


def test_markdown_names_every_number() -> None:
    text = report_markdown(make_report(_rows(10, 28, 40), ABOUT))
    for part in ("plants: better", "| all | 40 |", "group: near", "topic: t0", "fake 1", "ECE"):
        assert part in text


def test_the_report_names_what_flipped_what_n_can_tell_and_who_else_sat_the_exam() -> None:
    sitting = _rows(10, 28, 40)
    third = tuple(
        row.model_copy(update={"side": "also plants", "served": "plants"}) for row in sitting.rows if row.side == "base"
    )
    report = make_report(Sitting(sitting.rows + third), ABOUT)
    assert report.flips is not None
    assert report.flips.gained == tuple(f"q{at}" for at in range(10, 28))
    assert report.flips.lost == ()
    assert report.difference_ci95 is not None
    assert report.difference_ci95[0] < 0.45 < report.difference_ci95[1]
    assert [(other.side.served, other.difference) for other in report.others] == [("plants", 0)]
    text = report_markdown(report)
    for part in ("n = 40 is enough", "Gained: 18 (q10, q11", "| `plants` | 0.250", "reliability.svg"):
        assert part in text


def test_a_difference_that_can_be_chance_is_told_with_the_questions_it_would_take() -> None:
    text = report_markdown(make_report(_rows(10, 12, 40), ABOUT))
    assert "n is too small to tell: with n = 40" in text
    assert "questions would be needed" in text


def test_the_reliability_plot_shows_every_side_and_is_the_same_every_time(tmp_path: Path) -> None:
    report = make_report(_rows(10, 28, 40), ABOUT)
    for name in ("one.svg", "two.svg"):
        write_plot(tmp_path / name, report.calibration)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    for part in ("plants:base", "plants:adapter", ">40<", "calibrated"):
        assert part in text


def test_a_second_report_gets_a_name_of_its_own(tmp_path: Path) -> None:
    assert keep_report(tmp_path, "abc-run", "{}") == "abc-run.json"
    assert keep_report(tmp_path, "abc-run", "[]") == "abc-run-2.json"
    assert (tmp_path / "reports" / "abc-run.json").read_text(encoding="utf-8") == "{}"
