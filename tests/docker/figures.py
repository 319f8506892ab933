"""What the ring measured on its way, as the page `docs/reports/compose.md`."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from tests.stack import REPO

PAGE = REPO / "docs/reports/compose.md"


RUN = (
    ("engine", "run, our CPU image; vLLM's own image with a GPU: configuration checked"),
    ("gateway, ui, trainer, owner, volumes", "run; the trainer on a CPU"),
    ("postgres, redis", "stand-in run, from Debian's packages"),
    ("prometheus", "stand-in run, from Debian's package, with the shipped configuration"),
    ("open-webui", "stand-in run, from PyPI, with the service's environment; its image would run as root"),
    ("grafana", "configuration checked: Compose's, and the dashboard against the series that exist"),
    (
        "loki, alloy, docker-logs, host-exporter, gpu-exporter, tunnel",
        "configuration checked: Compose's; nothing has parsed their own files",
    ),
)
"""Which images could be had where this was written. A stand-in has the same name and another origin."""


@dataclass
class Figures:
    """Figures by section, in the order in which they came."""

    rows: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)

    def note(self, section: str, what: str, reached: str, asked: str = "") -> None:
        """Notes one figure: what it is, what was reached, and what was asked for."""
        self.rows.setdefault(section, []).append((what, asked, reached))

    def page(self, machine: str) -> str:
        """The report as Markdown."""
        lines = [
            *("# The Compose stack, measured", "", "Written by `make bench-compose`; edits are lost.", "", machine, ""),
            *("## What was run", "", "| service | how |", "|---|---|", *(f"| {one} | {how} |" for one, how in RUN), ""),
        ]
        for section, rows in self.rows.items():
            lines += [f"## {section}", "", "| what | asked | reached |", "|---|---|---|"]
            lines += [f"| {what} | {asked} | {reached} |" for what, asked, reached in rows]
            lines.append("")
        return "\n".join(lines)


def machine() -> str:
    """This machine in a sentence."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores, {gib:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}"


def keep(figures: Figures, folder: Path) -> None:
    """Writes what was measured beside the test's other output."""
    (folder / "figures.json").write_text(json.dumps(figures.rows, indent=2))
