"""How fast each loader brings a model's bytes, as bars: page cache warm and dropped."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod_bench.cold.runs import Timing

COLOURS: Mapping[str, str] = {"warm": "#f0a35e", "dropped": "#4f8fc0"}
_INK, _PALE, _GREY = "#22303c", "#e4e8ec", "#5a6772"


def draw_loaders(timings: Sequence[Timing], path: Path) -> None:
    """Write the chart, a column of bars per case; the file's ending is its format."""
    cases = list(dict.fromkeys(timing.case for timing in timings))
    most = max(len({t.name for t in timings if t.case == case}) for case in cases)
    height = 1.5 + 0.5 * most
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "loaders"}):
        figure = Figure(figsize=(5.6 * len(cases), height), facecolor="white", layout="constrained")
        columns = figure.subplots(1, len(cases), squeeze=False)[0]
        for axes, case in zip(columns, cases, strict=True):
            _draw_case(axes, case, [timing for timing in timings if timing.case == case])
        states = [state for state in COLOURS if any(t.state == state for t in timings)]
        handles = [mpl.patches.Patch(color=COLOURS[state]) for state in states]
        figure.legend(
            handles,
            [f"page cache {state}" for state in states],
            loc="outside upper right",
            ncols=len(states),
            frameon=False,
            fontsize=9,
        )
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)


def _draw_case(axes: Axes, case: str, timings: Sequence[Timing]) -> None:
    names = list(dict.fromkeys(timing.name for timing in timings))
    states = [state for state in COLOURS if any(timing.state == state for timing in timings)]
    bar = 0.8 / len(states)
    for timing in timings:
        rate = timing.gigabytes_per_s or 0.0
        row = names.index(timing.name) + (states.index(timing.state) - (len(states) - 1) / 2) * bar
        axes.barh(row, rate, height=bar * 0.92, color=COLOURS[timing.state], linewidth=0)
        axes.text(rate, row, f" {rate:.2f}", va="center", fontsize=7.5, color=_GREY)
    axes.set_yticks(range(len(names)), names, fontsize=9, color=_INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(right=1.12 * max(timing.gigabytes_per_s or 0.0 for timing in timings) or 1)
    axes.set_xlabel("GB/s until every byte is there, median", fontsize=9, color=_GREY)
    axes.set_title(case, loc="left", fontsize=11, color=_INK, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5, colors=_GREY)
    axes.grid(axis="x", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8cdd3")
