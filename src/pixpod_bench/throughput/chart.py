"""The same figures as a picture: batching by model, mixed jobs by side, memory over jobs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod_bench.throughput.memory import Growth
from pixpod_bench.throughput.mixed import Mixed
from pixpod_bench.throughput.report import Results
from pixpod_bench.throughput.same_size import LEAST_GAIN, SameSize

OURS, OTHERS = "#f0a35e", "#4f8fc0"
_INK, _PALE, _GREY = "#22303c", "#e4e8ec", "#5a6772"
_WIDTH, _HEIGHT = 5.2, 3.6


def draw(results: Results, path: Path) -> bool:
    """Write a panel for each part that was measured; the file's ending is its format.

    Returns whether there was anything to draw.
    """
    panels: list[Callable[[Axes], None]] = []
    if same_size := results.same_size:
        panels.append(lambda axes: _draw_same_size(axes, same_size))
    if mixed := results.mixed:
        panels.append(lambda axes: _draw_mixed(axes, mixed))
    if growth := results.growth:
        panels.append(lambda axes: _draw_growth(axes, growth))
    if not panels:
        return False
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "throughput"}):
        size = (_WIDTH * len(panels), _HEIGHT)
        figure = Figure(figsize=size, facecolor="white", layout="constrained")
        columns = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(columns, panels, strict=True):
            panel(axes)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)
    return True


def _draw_same_size(axes: Axes, gains: Sequence[SameSize]) -> None:
    _bars(
        axes,
        [each.model for each in gains],
        [each.gain.median for each in gains],
        [OURS] * len(gains),
    )
    axes.axvline(LEAST_GAIN, color=_GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("images/s with batching over without; dotted: target", fontsize=9, color=_GREY)
    axes.set_title(f"{gains[0].jobs} jobs of one size", loc="left", fontsize=11, color=_INK)


def _draw_mixed(axes: Axes, mixed: Mixed) -> None:
    _bars(
        axes,
        [each.side for each in mixed.sides],
        [each.images_per_s for each in mixed.sides],
        [OTHERS if each.side.startswith("plain") else OURS for each in mixed.sides],
    )
    axes.set_xlabel("images/s", fontsize=9, color=_GREY)
    axes.set_title("Mixed jobs", loc="left", fontsize=11, color=_INK)


def _draw_growth(axes: Axes, growth: Growth) -> None:
    jobs = [growth.lot * (number + 1) for number in range(len(growth.sampled_bytes))]
    axes.plot(jobs, [size / 2**20 for size in growth.sampled_bytes], color=OURS, linewidth=1.6)
    axes.axvline(growth.warm_up_jobs, color=_GREY, linewidth=1, linestyle=":")
    axes.set_ylim(0, 1.15 * max(growth.sampled_bytes) / 2**20)
    axes.set_xlabel("jobs; dotted: end of the warm-up", fontsize=9, color=_GREY)
    axes.set_ylabel("resident MiB", fontsize=9, color=_GREY)
    title = f"Memory: {growth.percent:+.2f} % in 500 jobs"
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    _tidy(axes, "y")


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str]
) -> None:
    axes.barh(range(len(names)), values, height=0.7, color=colours, linewidth=0)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.2f}", va="center", fontsize=8, color=_GREY)
    axes.set_yticks(range(len(names)), names, fontsize=8.5, color=_INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, 1.15 * max(values))
    axes.tick_params(axis="y", length=0)
    _tidy(axes, "x")


def _tidy(axes: Axes, grid: str) -> None:
    axes.grid(axis="x" if grid == "x" else "y", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=_GREY)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8cdd3")
