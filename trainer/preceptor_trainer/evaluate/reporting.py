"""Answers become a report: base against adapter, and whatever else sat the exam beside them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.files import sync_folder, write_atomic
from preceptor_contracts.report import Comparison, Flips, Guard, Judging, Opponent, Perplexity, Report, Verdict

from preceptor_trainer.evaluate import statistics
from preceptor_trainer.evaluate.exam import ADAPTER, BASE, AnswerRow
from preceptor_trainer.evaluate.sitting import Sitting


class Circumstances(NamedTuple):
    """What a report says beside the answers."""

    domain: str
    run_id: str
    exam_sha: str
    seconds: float
    engine: str
    judging: Judging | None = None
    guard: Guard | None = None
    forgetting_blocks: bool = False
    """An adapter that forgot is not called better."""
    perplexity: tuple[Perplexity, ...] = ()


def make_report(sitting: Sitting, circumstances: Circumstances) -> Report:
    """Compares the two sides, in all, by group and by topic.

    Args:
        sitting: Everybody's answers to the same questions.
        circumstances: What the answers do not say.
    """
    whole, paired = compare(sitting), sitting.pair(BASE, ADAPTER)
    counts = whole.n, len(paired.only_first), len(paired.only_second)
    judgement, guard = statistics.judge(*counts), circumstances.guard
    verdict, reason = judgement
    if guard is not None and guard.forgot and circumstances.forgetting_blocks and verdict is Verdict.BETTER:
        verdict = Verdict.NOT_BETTER
        reason = f"It is better at the exam, and forgot what TRAINER_GUARD=block protects. {guard.reason} {reason}"
    return Report(
        **dict(whole),
        domain=circumstances.domain,
        run_id=circumstances.run_id,
        exam_sha=circumstances.exam_sha,
        verdict=verdict,
        reason=reason,
        groups=_by(sitting, lambda row: row.group),
        topics=_by(sitting, lambda row: row.topic),
        calibration=tuple(found for side in sitting.sides if (found := sitting.calibration(side))),
        seconds=round(circumstances.seconds, 1),
        engine=circumstances.engine,
        created_at=datetime.now(UTC),
        others=tuple(_opponent(sitting, side) for side in sitting.sides if side not in (BASE, ADAPTER)),
        flips=Flips(gained=paired.only_second, lost=paired.only_first),
        sample=statistics.sample_size(*counts),
        guard=guard,
        perplexity=circumstances.perplexity,
        judging=circumstances.judging,
    )


def compare(sitting: Sitting) -> Comparison:
    """Compares the sides `base` and `adapter`."""
    paired = sitting.pair(BASE, ADAPTER)
    return Comparison(
        n=paired.n,
        base=sitting.score(BASE),
        adapter=sitting.score(ADAPTER),
        difference=paired.difference,
        mcnemar_p=paired.p,
        difference_ci95=paired.interval,
    )


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


def _opponent(sitting: Sitting, side: str) -> Opponent:
    paired = sitting.pair(BASE, side)
    return Opponent(
        side=sitting.score(side),
        difference=paired.difference,
        difference_ci95=paired.interval,
        mcnemar_p=paired.p,
    )


def _by(sitting: Sitting, key: Callable[[AnswerRow], str]) -> dict[str, Comparison]:
    parts: dict[str, list[AnswerRow]] = {}
    for row in sitting.rows:
        parts.setdefault(key(row), []).append(row)
    return {name: compare(sitting._replace(rows=tuple(parts[name]))) for name in sorted(parts)}
