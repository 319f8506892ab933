"""The preparation report as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preceptor_trainer.prepare.report import Finding, LengthReport, Pair, PreparationReport

_BAR = 40
_ROWS = 20
_NAMED = 3
_BELOW = "\n  - "
"""Puts the lines of an error below each other, on a terminal too."""


def report_page(report: PreparationReport) -> str:
    """Lays a report out as Markdown."""
    return "\n".join(_page(report)) + "\n"


def summary_lines(report: PreparationReport) -> list[str]:
    """Says what is out of the ordinary, for a terminal."""
    held = sum(report.split.validation.values())
    told = [f"Held out for validation: {held} records, seed {report.split.seed}."] if held else []
    near = report.near_duplicates
    if near.count:
        pairs = ", ".join(f"{pair.other!r} like {pair.record!r}" for pair in near.first[:_NAMED])
        told.append(f"Near duplicates removed: {near.count} ({pairs}{', ...' if near.count > _NAMED else ''}).")
    return [*told, *(f"Warning: {warning}" for warning in report.warnings)]


def _page(report: PreparationReport) -> Iterator[str]:
    yield "# Preparation"
    yield ""
    yield f"`{report.file}` ({report.read_as}): {report.rows} rows, {report.records} records."
    if report.records:
        yield f"Dataset `{report.dataset_sha256}`."
    if report.errors:
        yield from ("", "## Why it was refused", "")
        yield from (f"- {_cell(error, line_break=_BELOW)}" for error in report.errors)
    if report.warnings:
        yield from ("", "## Warnings", "")
        yield from (f"- {_cell(warning)}" for warning in report.warnings)
    if report.bad_rows:
        yield from ("", f"## Bad rows ({report.bad_rows})", "", "| place | what is wrong |", "|---|---|")
        yield from (f"| {row.place} | {_cell(row.message)} |" for row in report.first_bad_rows)
    yield from _counts("Formats", "format", report.formats)
    yield from _split(report)
    if report.lengths:
        yield from _lengths(report.lengths)
    yield from _pairs("Exact duplicates, the second removed", report.exact_duplicates)
    yield from _pairs("Near duplicates, the second removed", report.near_duplicates)
    yield from _pairs("Contradictions, by their answers", report.contradictions)
    if report.leaks:
        yield from _pairs("Exam leaks", Finding(count=report.leaks.pairs, first=report.leaked_texts))
    if report.private_data:
        yield from _counts("Possibly personal data", "kind", report.private_data)
        yield from ("", "| place | kind | value, masked |", "|---|---|---|")
        yield from (f"| {found.place} | {found.kind} | {found.masked} |" for found in report.first_private_data)


def _counts(title: str, what: str, counts: Mapping[str, int]) -> Iterator[str]:
    if counts:
        yield from ("", f"## {title}", "", f"| {what} | rows |", "|---|---|")
        yield from (f"| {_cell(name)} | {count} |" for name, count in counts.items())


def _split(report: PreparationReport) -> Iterator[str]:
    split = report.split
    yield from ("", "## Topics", "", "| topic | training | validation |", "|---|---|---|")
    for topic in report.topics:
        yield f"| {_cell(topic)} | {split.training.get(topic, 0)} | {split.validation.get(topic, 0)} |"
    yield from ("", f"Validation share {split.share}, seed {split.seed}.")


def _lengths(lengths: LengthReport) -> Iterator[str]:
    yield from ("", "## Lengths in tokens", "", "| up to | records | |", "|---|---|---|")
    most = max(lengths.histogram.values())
    for bound, count in lengths.histogram.items():
        yield f"| {bound} | {count} | {'█' * -(-_BAR * count // most)} |"
    yield ""
    yield (
        f"Shortest {lengths.shortest}, median {lengths.median}, 95 % up to {lengths.percentile_95}, longest "
        f"{lengths.longest}. At `max_length` {lengths.max_length}, {lengths.truncated:.1%} would be truncated and "
        f"{lengths.fully_masked:.1%} fully masked; such records are refused, never cut."
    )


def _pairs(title: str, finding: Finding) -> Iterator[str]:
    if not finding.count:
        return
    yield from ("", f"## {title} ({finding.count})", "", "| first | second | text | text |", "|---|---|---|---|")
    yield from (_pair(pair) for pair in finding.first[:_ROWS])


def _pair(pair: Pair) -> str:
    other = f"{pair.other} ({pair.method})" if pair.method else pair.other
    return f"| {_cell(pair.record)} | {_cell(other)} | {_cell(pair.text)} | {_cell(pair.other_text)} |"


def _cell(text: str, *, line_break: str = " ") -> str:
    """Text of strangers must neither end a cell nor be taken for HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return line_break.join(escaped.splitlines())
