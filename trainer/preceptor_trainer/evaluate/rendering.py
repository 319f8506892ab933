"""A report for people: a table on the terminal, and `report.md`."""

from __future__ import annotations

from collections.abc import Iterator

from preceptor_contracts.report import Comparison, Report, Side
from rich.box import SIMPLE_HEAD
from rich.table import Table

PLOT = "reliability.svg"
_FLIPS_SHOWN = 20


def narrow_table(title: str, headings: tuple[str, ...]) -> Table:
    """Makes a table whose numbers stay whole on 80 columns; only its first column, the names, folds."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", overflow="fold", no_wrap=at > 0)
    return table


def report_table(report: Report) -> Table:
    """Lays a report out for the terminal."""
    headings = ("", "base", "adapter", "difference", "95% of it", "McNemar p")
    table = narrow_table(f"Exam of {report.domain}, as served (n = {report.n})", headings)
    parts = {"all": report, **report.groups, **{f"topic {name}": item for name, item in report.topics.items()}}
    if report.guard is not None:
        parts["guard, general"] = report.guard
    for name, item in parts.items():
        table.add_row(
            f"{name} ({item.n})",
            f"{item.base.accuracy:.3f}",
            f"{item.adapter.accuracy:.3f}",
            f"{item.difference:+.3f}",
            "{:+.2f} {:+.2f}".format(*item.difference_ci95) if item.difference_ci95 else "",
            f"{item.mcnemar_p:.2g}",
        )
    table.add_row("95% interval, all", _short(report.base), _short(report.adapter), "", "", "")
    if len(report.calibration) >= 2:
        base, adapter = report.calibration[:2]
        for label, one, two in (("ECE", base.ece, adapter.ece), ("Brier", base.brier, adapter.brier)):
            table.add_row(label, f"{one:.3f}", f"{two:.3f}", f"{two - one:+.3f}", "", "")
    for other in report.others:
        cells = (f"{other.side.accuracy:.3f}", f"{other.difference:+.3f}")
        table.add_row(
            other.side.served, "", *cells, "{:+.2f} {:+.2f}".format(*other.difference_ci95), f"{other.mcnemar_p:.2g}"
        )
    return table


def report_sentences(report: Report) -> list[str]:
    """What must be said beside the table: the verdict, what n can tell, what flipped, what was forgotten."""
    sentences = [report.reason]
    if report.sample is not None:
        sentences.append(report.sample.sentence)
    if report.flips is not None and (report.flips.gained or report.flips.lost):
        sentences.append(f"Gained: {named(report.flips.gained)}. Lost: {named(report.flips.lost)}.")
    if report.guard is not None:
        sentences.append(report.guard.reason)
    for item in report.perplexity:
        sentences.append(
            f"{item.served}: perplexity {item.per_token:.2f} a token, {item.bits_per_byte:.3f} bits a byte, "
            f"over {item.tokens:,} tokens of {item.text}."
        )
    if report.judging is not None:
        judging = report.judging
        sentences.append(
            f"The judge {judging.judge!r} compared {judging.comparisons} pairs of answers in both orders; an answer "
            f"counts as right where it won. {judging.disagreed} pairs are ties because the orders disagreed, "
            f"{judging.unreadable} because nothing readable was said."
        )
    return sentences


def report_markdown(report: Report) -> str:
    """Writes `report.md`."""
    lines = [
        f"# {report.domain}: {report.verdict.value.replace('_', ' ')}",
        "",
        report.reason,
        "",
        f"Run `{report.run_id}`, {report.n} questions in {report.seconds:.0f} s, answered by {report.engine}.",
        f"Exam sha256 `{report.exam_sha}`. Intervals of accuracies are Wilson's 95 %, those of differences are from a",
        "paired bootstrap of 10,000 resamples; p is McNemar's, exact and two-sided.",
        "",
        f"Base `{report.base.served}`, adapter `{report.adapter.served}`.",
        "",
        "| questions | n | base | adapter | difference | 95 % of it | p |",
        "|---|---|---|---|---|---|---|",
        _row("all", report),
        *(_row(f"group: {name}", item) for name, item in report.groups.items()),
        *(_row(f"topic: {name}", item) for name, item in report.topics.items()),
        *([_row("guard: general questions", report.guard)] if report.guard else []),
    ]
    lines += _others(report)
    for sentence in report_sentences(report)[1:]:
        lines += ["", sentence]
    lines += _calibration(report)
    return "\n".join(lines) + "\n"


def interval(side: Side) -> str:
    """Wilson's interval, as text."""
    return f"{side.ci95[0]:.3f}-{side.ci95[1]:.3f}"


def named(ids: tuple[str, ...]) -> str:
    """Question ids, the first few by name."""
    more = f" and {len(ids) - _FLIPS_SHOWN} more" if len(ids) > _FLIPS_SHOWN else ""
    return f"{len(ids)} ({', '.join(ids[:_FLIPS_SHOWN])}{more})" if ids else "none"


def _others(report: Report) -> Iterator[str]:
    if report.others:
        yield from ("", "| also sat the exam | right | less base | 95 % of it | p |", "|---|---|---|---|---|")
    for other in report.others:
        low, high = other.difference_ci95
        yield (
            f"| `{other.side.served}` | {_score(other.side)} | {other.difference:+.3f} "
            f"| {low:+.3f} to {high:+.3f} | {other.mcnemar_p:.2g} |"
        )


def _calibration(report: Report) -> Iterator[str]:
    if not report.calibration:
        return
    yield from ("", "| served name | ECE | Brier |", "|---|---|---|")
    for item in report.calibration:
        yield f"| `{item.served}` | {item.ece:.3f} | {item.brier:.3f} |"
    yield from ("", f"![Reliability: how often answers are right, by their probability]({PLOT})")


def _short(side: Side) -> str:
    return f"{side.ci95[0]:.2f}-{side.ci95[1]:.2f}"


def _score(side: Side) -> str:
    return f"{side.accuracy:.3f} ({side.correct}; {interval(side)})"


def _of_difference(item: Comparison) -> str:
    return "" if item.difference_ci95 is None else f"{item.difference_ci95[0]:+.3f} to {item.difference_ci95[1]:+.3f}"


def _row(name: str, item: Comparison) -> str:
    cells = (name, item.n, _score(item.base), _score(item.adapter), f"{item.difference:+.3f}")
    return f"| {' | '.join(str(cell) for cell in (*cells, _of_difference(item), f'{item.mcnemar_p:.2g}'))} |"
