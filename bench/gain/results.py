"""One report a domain and seed, and what they say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from preceptor_contracts.report import Report


class Gained(NamedTuple):
    """One seed of one domain."""

    domain: str
    seed: int
    run_id: str
    records: int
    train_seconds: float
    final_loss: float
    report: Report


class Summary(NamedTuple):
    """All seeds of a domain."""

    domain: str
    n: int
    records: int
    base: tuple[float, ...]
    """Accuracy, one a seed; the same base model each time, so it differs by ties and batching only."""
    adapter: tuple[float, ...]
    verdicts: tuple[str, ...]
    p: tuple[float, ...]
    train_seconds: float
    """Median."""

    @property
    def difference(self) -> tuple[float, ...]:
        """Adapter less base, one a seed."""
        return tuple(adapter - base for adapter, base in zip(self.adapter, self.base, strict=True))


def summarise(gained: Sequence[Gained]) -> list[Summary]:
    """Sums up by domain, in order."""
    found = []
    for domain in dict.fromkeys(one.domain for one in gained):
        seeds = [one for one in gained if one.domain == domain]
        found.append(
            Summary(
                domain=domain,
                n=seeds[0].report.n,
                records=seeds[0].records,
                base=tuple(one.report.base.accuracy for one in seeds),
                adapter=tuple(one.report.adapter.accuracy for one in seeds),
                verdicts=tuple(one.report.verdict.value for one in seeds),
                p=tuple(one.report.mcnemar_p for one in seeds),
                train_seconds=statistics.median(one.train_seconds for one in seeds),
            )
        )
    return found


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean, standard deviation over the seeds, and range."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f} ({min(values):.3f} to {max(values):.3f})"
