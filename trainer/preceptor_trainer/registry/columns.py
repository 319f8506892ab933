"""Rows in columns that never wrap, so that names and hashes can be searched and copied."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Pads every cell but a row's last to the widest one of its column."""
    columns = range(max(map(len, rows), default=0))
    widths = [max((len(row[at]) for row in rows if len(row) > at + 1), default=0) for at in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows
    )
