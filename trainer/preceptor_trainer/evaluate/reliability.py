"""The reliability plot: is an answer of probability 0.8 right 8 times in 10?"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.files import write_atomic
from preceptor_contracts.report import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR, _GAP, _LINE = "#4c78a8", "#e45756", "#555555"
_COLUMNS = 3
_WIDEST = 40
"""Characters of a served name that fit over a panel."""
_FOOT = 0.07
"""Share right below which a bar cannot hold its number."""


def write_plot(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Draws one panel a side: bars with their counts beside the diagonal that a calibrated side would follow.

    Args:
        path: An `.svg` file.
        calibrations: Of each side, at least one.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(calibrations))
    rows = math.ceil(len(calibrations) / columns)
    # A salt and no date: the same answers make the same file.
    with rc_context({"svg.hashsalt": "preceptor", "svg.fonttype": "none", "font.size": 9.0}):
        figure = Figure(figsize=(4.2 * columns, 4.3 * rows + 0.4), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for at, panel in enumerate(panels.flat):
            if at < len(calibrations):
                _draw(panel, calibrations[at], is_left=at % columns == 0)
            else:
                panel.set_visible(False)
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_atomic(path, text.getvalue())


def _draw(panel: Axes, calibration: Calibration, *, is_left: bool) -> None:
    panel.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle="--", label="calibrated", zorder=3)
    for at, item in enumerate(calibration.bins):
        width = item.high - item.low
        panel.bar(
            item.low,
            item.accuracy,
            width,
            align="edge",
            color=_BAR,
            edgecolor="white",
            label="" if at else "share right",
        )
        panel.plot(
            [item.confidence, item.confidence],
            [item.accuracy, item.confidence],
            color=_GAP,
            linewidth=2,
            zorder=4,
            label="" if at else "gap to the mean probability",
        )
        # In the bar's foot, where neither the diagonal nor the gap crosses it; beside it where the bar is too low.
        is_tall = item.accuracy > _FOOT
        panel.text(
            item.low + width / 2,
            0.02 if is_tall else item.accuracy + 0.02,
            f"{item.n}",
            ha="center",
            fontsize=8,
            color="white" if is_tall else _LINE,
            bbox={"facecolor": _BAR if is_tall else "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )
    n = sum(item.n for item in calibration.bins)
    served = calibration.served.replace(":", ":\n") if len(calibration.served) > _WIDEST else calibration.served
    panel.set_title(f"{served}\nECE {calibration.ece:.3f}, Brier {calibration.brier:.3f}, n = {n}")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("probability of the chosen option")
    if is_left:
        panel.set_ylabel("share right; numbers: answers")
    panel.spines[["top", "right"]].set_visible(False)
