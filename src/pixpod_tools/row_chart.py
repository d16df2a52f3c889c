"""A chart of horizontal bars, one in each row, with a headline; reports add the bars."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GREY, PALE, MARK = "#22303c", "#5a6772", "#e4e8ec", "#b3372f"
BAR = 0.72
"""Height of a bar, as a share of its row."""

_WIDTH_INCHES = 10.0
_HEAD_INCHES, _FOOT_INCHES, _RIM_INCHES = 0.75, 0.6, 0.1


def save_row_chart(
    path: Path,
    *,
    title: str,
    subtitle: str,
    labels: Sequence[str],
    unit: str,
    limit: float,
    row_inches: float,
    above_inches: float = 0.0,
    draw: Callable[[Axes], None],
) -> None:
    """Write a chart whose bars `draw` plots, from 0 to a little beyond `limit`.

    `above_inches` are left free above the rows. The file's ending is its format: svg, png or pdf.
    """
    rows_inches = len(labels) * row_inches + _RIM_INCHES
    height = _HEAD_INCHES + above_inches + rows_inches + _FOOT_INCHES
    with mpl.rc_context(
        {"font.family": "DejaVu Sans", "svg.hashsalt": "rows", "hatch.linewidth": 0.6}
    ):
        figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor="white")
        left = 2.2 / _WIDTH_INCHES
        axes = figure.add_axes((left, _FOOT_INCHES / height, 0.97 - left, rows_inches / height))
        axes.set_xlim(0, limit * 1.02)
        axes.set_ylim(len(labels) - 0.4, -0.65)
        axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
        axes.tick_params(axis="y", length=0, colors=INK)
        axes.tick_params(axis="x", labelsize=8.5, colors=GREY, length=3)
        axes.set_xlabel(unit, fontsize=9, color=GREY)
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#c8cdd3")
        draw(axes)
        figure.text(0.02, 1 - 0.3 / height, title, fontsize=13, color=INK, weight="bold")
        figure.text(0.02, 1 - 0.55 / height, subtitle, fontsize=9, color=GREY)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else {})
