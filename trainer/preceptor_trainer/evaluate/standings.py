"""Any number of served names side by side on one exam: every pair is tested, p corrected for their number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from preceptor_contracts.files import Sha256
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.messages import Text
from preceptor_contracts.report import Calibration, Judging, Share, Side
from preceptor_contracts.served_names import DomainName
from pydantic import AwareDatetime, Field
from rich.table import Table

from preceptor_trainer.evaluate import statistics
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.evaluate.rendering import PLOT, interval, narrow_table
from preceptor_trainer.evaluate.sitting import Sitting


class Entry(Frozen):
    """One served name."""

    side: Side
    groups: dict[str, Side]
    topics: dict[str, Side]
    calibration: Calibration | None
    """None without multiple choice."""


class Duel(Frozen):
    """Two served names on the same questions."""

    first: Text
    second: Text
    only_first: Annotated[int, Field(ge=0)]
    only_second: Annotated[int, Field(ge=0)]
    difference: float
    """The second's accuracy less the first's."""
    difference_ci95: tuple[float, float]
    mcnemar_p: Share
    holm_p: Share
    """Corrected for the number of pairs: all of these may be read at once."""


class Standings(Frozen):
    """`standings.json`."""

    schema_version: int = 1
    domain: DomainName
    exam: Text
    """Name of the file."""
    exam_sha: Sha256
    n: Annotated[int, Field(ge=1)]
    entries: tuple[Entry, ...]
    """In the order in which they were named."""
    duels: tuple[Duel, ...]
    reading: Text
    """What may be said, as a sentence."""
    judging: Judging | None
    seconds: float
    engine: str
    created_at: AwareDatetime


class About(NamedTuple):
    """What standings say beside the answers."""

    domain: str
    exam: str
    exam_sha: str
    seconds: float
    engine: str
    judging: Judging | None


def make_standings(sitting: Sitting, about: About) -> Standings:
    """Scores every side and tests every pair."""
    sides = sitting.sides
    pairs = list(itertools.combinations(sides, 2))
    paired = [sitting.pair(*names) for names in pairs]
    corrected = statistics.holm([one.p for one in paired])
    duels = tuple(
        Duel(
            first=first,
            second=second,
            only_first=len(one.only_first),
            only_second=len(one.only_second),
            difference=one.difference,
            difference_ci95=one.interval,
            mcnemar_p=one.p,
            holm_p=holm_p,
        )
        for (first, second), one, holm_p in zip(pairs, paired, corrected, strict=True)
    )
    n = sum(row.side == sides[0] for row in sitting.rows)
    return Standings(
        domain=about.domain,
        exam=about.exam,
        exam_sha=about.exam_sha,
        n=n,
        entries=tuple(
            Entry(
                side=sitting.score(side),
                groups=_by(sitting, side, lambda row: row.group),
                topics=_by(sitting, side, lambda row: row.topic),
                calibration=sitting.calibration(side),
            )
            for side in sides
        ),
        duels=duels,
        reading=_reading(n, duels),
        judging=about.judging,
        seconds=round(about.seconds, 1),
        engine=about.engine,
        created_at=datetime.now(UTC),
    )


def standings_tables(standings: Standings) -> Iterator[Table]:
    """Lays standings out for the terminal: the sides, then the pairs, then the topics."""
    title = f"Exam of {standings.domain}, as served (n = {standings.n})"
    for heading, (headings, rows) in (
        (title, _side_cells(standings)),
        ("Every pair", _duel_cells(standings)),
        ("By group and topic", _topic_cells(standings)),
    ):
        if rows:
            table = narrow_table(heading, headings)
            for cells in rows:
                table.add_row(*cells)
            yield table


def standings_markdown(standings: Standings) -> str:
    """Writes `standings.md`."""
    lines = [
        f"# {standings.domain}: {len(standings.entries)} served names on {standings.exam}",
        "",
        standings.reading,
        "",
        f"{standings.n} questions in {standings.seconds:.0f} s, answered by {standings.engine}. Exam sha256 "
        f"`{standings.exam_sha}`.",
    ]
    for headings, rows in (_side_cells(standings), _duel_cells(standings), _topic_cells(standings)):
        if rows:
            lines += ["", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
            lines += [f"| {' | '.join(cells)} |" for cells in rows]
    if any(entry.calibration for entry in standings.entries):
        lines += ["", f"![Reliability: how often answers are right, by their probability]({PLOT})"]
    return "\n".join(lines) + "\n"


def _reading(n: int, duels: tuple[Duel, ...]) -> str:
    if not duels:
        return f"One served name alone; name a second to compare it with. n = {n}."
    if n < statistics.LEAST_QUESTIONS:
        return f"n is too small to tell: {n} questions; fewer than {statistics.LEAST_QUESTIONS} prove nothing."
    shown = [one for one in duels if one.holm_p < statistics.SIGNIFICANT]
    if shown:
        won = [
            f"{one.second if one.difference > 0 else one.first} is better than "
            f"{one.first if one.difference > 0 else one.second} (p = {one.holm_p:.2g})"
            for one in shown
        ]
        return f"{'; '.join(won)}. All other differences can be chance. p is McNemar's with Holm's correction."
    widest = max(duels, key=lambda one: abs(one.difference))
    size = statistics.sample_size(n, widest.only_first, widest.only_second)
    said = f"No difference is shown that could not be chance, all {len(duels)} pair(s) read at once."
    if widest.mcnemar_p < statistics.SIGNIFICANT:
        alone = f"{widest.mcnemar_p:.2g}; with Holm's correction {widest.holm_p:.2g}"
        return f"{said} The widest alone would have p = {alone}."
    return f"{said} The widest is {widest.first} against {widest.second}: {size.sentence}"


_Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _side_cells(standings: Standings) -> _Cells:
    headings = ("served name", "number", "right", "accuracy", "95% interval", "ECE", "Brier")
    rows: list[tuple[str, ...]] = []
    for number, entry in enumerate(standings.entries, start=1):
        found = entry.calibration
        scores = (f"{found.ece:.3f}", f"{found.brier:.3f}") if found else ("", "")
        side = entry.side
        rows.append(
            (side.served, str(number), f"{side.correct}/{standings.n}", f"{side.accuracy:.3f}", interval(side), *scores)
        )
    return headings, rows


def _duel_cells(standings: Standings) -> _Cells:
    number = {entry.side.served: str(at) for at, entry in enumerate(standings.entries, start=1)}
    headings = ("pair", "alone right", "difference", "95% of it", "McNemar p", "Holm p")
    return headings, [
        (
            f"{number[one.first]} : {number[one.second]}",
            f"{one.only_first} : {one.only_second}",
            f"{one.difference:+.3f}",
            f"{one.difference_ci95[0]:+.2f} {one.difference_ci95[1]:+.2f}",
            f"{one.mcnemar_p:.2g}",
            f"{one.holm_p:.2g}",
        )
        for one in standings.duels
    ]


def _topic_cells(standings: Standings) -> _Cells:
    names = [str(at) for at in range(1, len(standings.entries) + 1)]
    rows = []
    for part, of in (
        ("group", [e.groups for e in standings.entries]),
        ("topic", [e.topics for e in standings.entries]),
    ):
        rows += [(f"{part} {name}", *(_short(sides[name]) for sides in of)) for name in of[0]]
    return ("questions", *names), rows


def _short(side: Side) -> str:
    return f"{side.accuracy:.2f} ({side.ci95[0]:.2f}-{side.ci95[1]:.2f})"


def _by(sitting: Sitting, side: str, key: Callable[[AnswerRow], str]) -> dict[str, Side]:
    parts: dict[str, list[AnswerRow]] = {}
    for row in sitting.rows:
        if row.side == side:
            parts.setdefault(key(row), []).append(row)
    return {name: Sitting(tuple(parts[name])).score(side) for name in sorted(parts)}
