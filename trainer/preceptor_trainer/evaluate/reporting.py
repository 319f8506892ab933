"""Answers become a report: as data, as Markdown, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.files import sync_folder, write_atomic
from preceptor_contracts.report import Calibration, Comparison, Report, Side
from rich.table import Table

from preceptor_trainer.evaluate import statistics
from preceptor_trainer.evaluate.exam import AnswerRow


class Circumstances(NamedTuple):
    """What a report says beside the answers."""

    domain: str
    run_id: str
    exam_sha: str
    seconds: float
    engine: str


def make_report(rows: Sequence[AnswerRow], circumstances: Circumstances) -> Report:
    """Compares the two sides, in all, by group and by topic.

    Args:
        rows: Both sides' answers to the same questions.
        circumstances: What the answers do not say.
    """
    whole = _compare(rows)
    only_base, only_adapter = _discordant(rows)
    judgement = statistics.judge(whole.n, only_base, only_adapter)
    return Report(
        **dict(whole),
        domain=circumstances.domain,
        run_id=circumstances.run_id,
        exam_sha=circumstances.exam_sha,
        verdict=judgement.verdict,
        reason=judgement.reason,
        groups=_by(rows, lambda row: row.group),
        topics=_by(rows, lambda row: row.topic),
        calibration=tuple(_calibration(rows)),
        seconds=round(circumstances.seconds, 1),
        engine=circumstances.engine,
        created_at=datetime.now(UTC),
    )


def report_table(report: Report) -> Table:
    """Lays a report out for people."""
    table = Table(title=f"Exam of {report.domain}, as served (n = {report.n})", title_justify="left")
    for heading in ("", "base", "adapter", "difference", "McNemar p"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, item in {"all": report, **report.groups}.items():
        table.add_row(
            f"{name} ({item.n})",
            _score(item.base),
            _score(item.adapter),
            f"{item.difference:+.3f}",
            f"{item.mcnemar_p:.2g}",
        )
    table.add_row("95% interval", _interval(report.base), _interval(report.adapter), "", "")
    if report.calibration:
        for label, values in (
            ("ECE", [item.ece for item in report.calibration]),
            ("Brier", [item.brier for item in report.calibration]),
        ):
            table.add_row(label, *(f"{value:.3f}" for value in values), f"{values[-1] - values[0]:+.3f}", "")
    return table


def report_markdown(report: Report) -> str:
    """Writes `report.md`."""
    lines = [
        f"# {report.domain}: {report.verdict.value.replace('_', ' ')}",
        "",
        report.reason,
        "",
        f"Run `{report.run_id}`, {report.n} questions in {report.seconds:.0f} s, answered by {report.engine}.",
        f"Exam sha256 `{report.exam_sha}`. Intervals are Wilson's 95 %; p is McNemar's, exact and two-sided.",
        "",
        f"Base `{report.base.served}`, adapter `{report.adapter.served}`.",
        "",
        "| questions | n | base | adapter | difference | p |",
        "|---|---|---|---|---|---|",
        _markdown_row("all", report),
        *(_markdown_row(f"group: {name}", item) for name, item in report.groups.items()),
        *(_markdown_row(f"topic: {name}", item) for name, item in report.topics.items()),
    ]
    if report.calibration:
        lines += ["", "| served name | ECE | Brier |", "|---|---|---|"]
        lines += [f"| `{item.served}` | {item.ece:.3f} | {item.brier:.3f} |" for item in report.calibration]
    return "\n".join(lines) + "\n"


def keep_report(adapter: Path, stem: str, text: str) -> str:
    """Puts a copy beside the adapter under a name that is new: reports are immutable, a second exam is a second one."""
    folder = adapter / "reports"
    folder.mkdir(exist_ok=True)
    sync_folder(adapter)
    name, number = f"{stem}.json", 1
    while (folder / name).exists():
        number += 1
        name = f"{stem}-{number}.json"
    write_atomic(folder / name, text)
    return name


def _compare(rows: Sequence[AnswerRow]) -> Comparison:
    base = _side([row for row in rows if row.side == "base"])
    adapter = _side([row for row in rows if row.side == "adapter"])
    return Comparison(
        n=len(rows) // 2,
        base=base,
        adapter=adapter,
        difference=round(adapter.accuracy - base.accuracy, 6),
        mcnemar_p=statistics.mcnemar(*_discordant(rows)),
    )


def _side(rows: Sequence[AnswerRow]) -> Side:
    correct = sum(row.graded.correct for row in rows)
    return Side(
        served=rows[0].served,
        correct=correct,
        accuracy=correct / len(rows),
        ci95=statistics.wilson(correct, len(rows)),
    )


def _discordant(rows: Sequence[AnswerRow]) -> tuple[int, int]:
    """Counts questions that only the base, and only the adapter, got right."""
    right = {
        side: {row.question for row in rows if row.side == side and row.graded.correct} for side in ("base", "adapter")
    }
    return len(right["base"] - right["adapter"]), len(right["adapter"] - right["base"])


def _by(rows: Sequence[AnswerRow], key: Callable[[AnswerRow], str]) -> dict[str, Comparison]:
    return {name: _compare([row for row in rows if key(row) == name]) for name in sorted({key(row) for row in rows})}


def _calibration(rows: Sequence[AnswerRow]) -> list[Calibration]:
    found = []
    for side in ("base", "adapter"):
        graded = [row.graded for row in rows if row.side == side]
        chances = [item.probabilities for item in graded if item.probabilities is not None]
        answers = [item.answer_index for item in graded if item.answer_index is not None]
        if not chances:
            continue
        found.append(
            Calibration(
                served=next(row.served for row in rows if row.side == side),
                ece=statistics.expected_calibration_error(
                    [max(values) for values in chances], [item.correct for item in graded]
                ),
                brier=statistics.brier(chances, answers),
            )
        )
    return found


def _score(side: Side) -> str:
    return f"{side.accuracy:.3f}"


def _interval(side: Side) -> str:
    return f"{side.ci95[0]:.3f}-{side.ci95[1]:.3f}"


def _markdown_row(name: str, item: Comparison) -> str:
    def cell(side: Side) -> str:
        return f"{side.accuracy:.3f} ({side.correct}; {_interval(side)})"

    cells = (name, item.n, cell(item.base), cell(item.adapter), f"{item.difference:+.3f}", f"{item.mcnemar_p:.2g}")
    return f"| {' | '.join(str(value) for value in cells)} |"
