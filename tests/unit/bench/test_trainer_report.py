"""The arithmetic of bench/trainer and bench/gain, and their words."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pytest
from preceptor_contracts.report import Report, Side, Verdict

from bench.gain.report import write_report as write_gain
from bench.gain.results import Gained, mean_and_spread, summarise
from bench.trainer.contestants import Contestant
from bench.trainer.report import BASE_PARAMETERS, Findings, goals, matrix_share, write_report
from bench.trainer.rounds import Measured

RATES = {Contestant.OURS: 400.0, Contestant.TRL: 200.0, Contestant.FACTORY: 320.0}


def measured(number: int, who: Contestant, *, loss: float = 0.9, slower: float = 1.0) -> Measured:
    seconds = 4000 / RATES[who] * slower
    peak = 3_000_000_000 if who is Contestant.OURS else 4_000_000_000
    return Measured(
        number, "sql", who, 4000, seconds, loss, peak, 0.5 if who is Contestant.OURS else 1.0, 2e11 / slower
    )


def findings(*, loss: float = 0.9) -> Findings:
    rows = [measured(number, who, slower=number) for number in (1, 2, 3) for who in RATES]
    return Findings(tuple(one._replace(loss=loss) if one.contestant is Contestant.OURS else one for one in rows))


def test_ratios_are_taken_within_a_round() -> None:
    assert findings().ratios("sql", Contestant.TRL, lambda one: one.rate) == (2.0, 2.0, 2.0)


def test_the_matrix_share_counts_four_operations_a_parameter_and_token() -> None:
    assert matrix_share(measured(1, Contestant.OURS)) == pytest.approx(4 * BASE_PARAMETERS * 400 / 2e11)


def test_goals_are_held_against_the_findings() -> None:
    words = {goal.measure: goal.word for goal in goals(findings())}
    assert words["sql: tokens/s against plain TRL, defaults"] == "reached"
    assert words["sql: tokens/s against LLaMA-Factory, defaults, float32"] == "**not reached**"
    assert words["sql: peak memory against plain TRL"] == "reached"
    assert words["sql: share of the float32 matrix rate"] == "reached"
    assert words["sql: share of the float32 matrix rate, computed tokens only"] == "**not reached**"
    assert words["QLoRA memory against bf16 LoRA, tokens/s and MFU on a GPU"] == "not measured"


def test_speed_bought_with_loss_is_told() -> None:
    words = {goal.measure: goal.word for goal in goals(findings(loss=1.2))}
    assert words["sql: final validation loss against plain TRL, defaults"] == "**not reached**"


def test_the_trainers_report_is_written_from_the_rows(tmp_path: Path) -> None:
    write_report(tmp_path, findings(), {"processor": "a test"})
    text = (tmp_path / "report.md").read_text()
    assert "2.00 (2.00 to 2.00)x" in text
    assert "| plain TRL, defaults | 100 (67 to 200) |" in text
    with (tmp_path / "rounds.csv").open() as stream:
        assert [row["tokens_per_second"] for row in csv.DictReader(stream)][:3] == ["400.0", "200.0", "320.0"]


def gained(seed: int, adapter: int, verdict: Verdict) -> Gained:
    report = Report(
        n=100,
        base=Side(served="sql:base", correct=40, accuracy=0.4, ci95=(0.3, 0.5)),
        adapter=Side(served="sql:sql-v1-1a2b3c4d", correct=adapter, accuracy=adapter / 100, ci95=(0.3, 0.9)),
        difference=adapter / 100 - 0.4,
        mcnemar_p=0.001 * seed,
        domain="sql",
        run_id="r",
        exam_sha="0" * 64,
        verdict=verdict,
        reason="It is.",
        groups={},
        topics={},
        calibration=(),
        seconds=1.0,
        engine="vLLM",
        created_at=datetime.now(UTC),
    )
    return Gained("sql", seed, f"run-{seed}", 480, 100.0 + seed, 0.01, report)


def test_seeds_are_summed_up_by_domain() -> None:
    seeds = [gained(7, 70, Verdict.BETTER), gained(8, 80, Verdict.BETTER), gained(9, 60, Verdict.NOT_BETTER)]
    (found,) = summarise(seeds)
    assert found.difference == pytest.approx((0.3, 0.4, 0.2))
    assert mean_and_spread(found.adapter) == "0.700 ± 0.100 (0.600 to 0.800)"


def test_the_gains_report_counts_verdicts_and_tells_the_worst_p(tmp_path: Path) -> None:
    write_gain(tmp_path, [gained(7, 70, Verdict.BETTER), gained(8, 45, Verdict.NOT_BETTER)], {"processor": "a test"})
    text = (tmp_path / "report.md").read_text()
    assert "1 x better, 1 x not_better" in text
    assert "| 0.008 |" in text
