"""Writes report.md and seeds.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gain.results import Gained, Summary, mean_and_spread, summarise


def write_report(folder: Path, gained: Sequence[Gained], machine: Mapping[str, str]) -> None:
    """Writes both files.

    Args:
        folder: Gets them.
        gained: Every seed of every domain.
        machine: Facts for the report's head.
    """
    with (folder / "seeds.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["domain", "seed", "run", "n", "base", "adapter", "mcnemar_p", "verdict", "loss", "seconds"])
        for one in gained:
            report = one.report
            scores = [report.n, round(report.base.accuracy, 4), round(report.adapter.accuracy, 4), report.mcnemar_p]
            writer.writerow(
                [one.domain, one.seed, one.run_id, *scores, report.verdict.value, one.final_loss, one.train_seconds]
            )
    seeds = sorted({one.seed for one in gained})
    parts = [
        "# What training gains, domain by domain",
        "Written by `make bench-gain`; edits are lost. The embedded base model, the CPU recipe, "
        f"seeds {', '.join(map(str, seeds))}; base and adapter sat the same exam through the gateway, as served. "
        "Mean, standard deviation and range over the seeds.",
        _table([_row(one) for one in summarise(gained)]),
        "A seed moves the weights' start and the order of records. The base model's accuracy may differ in the last "
        "digit between seeds where two options lie within rounding of each other. Groups and topics are in each run's "
        "`report.md`.",
        "## Where",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())]),
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _row(one: Summary) -> list[str]:
    verdicts = ", ".join(f"{one.verdicts.count(word)} x {word}" for word in dict.fromkeys(one.verdicts))
    return [
        one.domain,
        str(one.records),
        str(one.n),
        mean_and_spread(one.base),
        mean_and_spread(one.adapter),
        mean_and_spread(one.difference),
        f"{max(one.p):.2g}",
        verdicts,
        f"{one.train_seconds:.0f} s",
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ("domain", "records", "n", "base", "adapter", "difference", "largest p", "verdicts", "training")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
