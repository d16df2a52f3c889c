"""Saves a report's chart: panels of horizontal bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, PUBLISHED = "#f0a35e", "#4f8fc0", "#9aa5b1"
_INK, _PALE, _GREY = "#22303c", "#e4e8ec", "#5a6772"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    colour: str = OTHERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars with one scale; `unit` is written below the scale."""

    title: str
    unit: str
    bars: Sequence[Bar]


def save_panels(panels: Sequence[Panel], path: Path) -> bool:
    """Write the panels that have bars, one below the other; return whether there were any.

    The file's ending is its format: svg, png or pdf.
    """
    panels = [panel for panel in panels if panel.bars]
    if not panels:
        return False
    heights = [len(panel.bars) + 2.2 for panel in panels]
    size = (8.0, 0.3 * sum(heights) + 0.3)
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": path.stem}):
        figure = Figure(figsize=size, facecolor="white", layout="constrained")
        rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for (axes,), panel in zip(rows, panels, strict=True):
            _draw_panel(axes, panel)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else {})
    return True


def _draw_panel(axes: Axes, panel: Panel) -> None:
    values = [bar.value for bar in panel.bars]
    rows = range(len(values))
    bars = axes.barh(rows, values, height=0.72, color=[bar.colour for bar in panel.bars])
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8, color=_INK)
    axes.set_yticks(rows, [bar.label for bar in panel.bars], fontsize=8, color=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.15 or 1)
    axes.set_xlabel(panel.unit, fontsize=8, color=_GREY)
    axes.set_title(panel.title, loc="left", fontsize=10, color=_INK, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=_GREY)
    axes.grid(axis="x", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
