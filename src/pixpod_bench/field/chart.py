"""Figures as bars beside published ones, work by work; in a second picture what they cost."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod_bench.field.report import Line

_OURS, _OTHERS, _DOUBTED, _INK = "#f0a35e", "#4f8fc0", "#c8cdd3", "#22303c"


def draw_charts(lines: Sequence[Line], folder: Path, device_name: str) -> None:
    if not lines:
        return
    _draw_speed(lines, folder / "bench-speed.svg", device_name)
    if any(line.usd_per_1000 is not None for line in lines):
        _draw_cost(lines, folder / "bench-cost.svg", device_name)


def _draw_speed(lines: Sequence[Line], path: Path, device_name: str) -> None:
    """Each work has a scale of its own: its slowest bar is the longest."""
    bars = sum(1 + len(line.published) for line in lines)
    figure = _new_figure(0.26 * bars + 0.42 * len(lines) + 0.9)
    axes = figure.subplots()
    place = 0.0
    for line in lines:
        axes.text(0, place, line.figure.work.name, fontsize=9, weight="bold", color=_INK)
        entries = [(line.figure.seconds, f"here: {device_name}", _OURS)]
        entries += [
            (each.seconds, f"{each.card}, published", _DOUBTED if each.doubt else _OTHERS)
            for each in line.published
        ]
        slowest = max(seconds for seconds, _, _ in entries)
        for seconds, label, colour in entries:
            place += 1
            axes.barh(place - 0.25, seconds / slowest, height=0.75, color=colour)
            text = f" {seconds:.2f} s  {label}"
            axes.text(seconds / slowest, place - 0.25, text, fontsize=8, color=_INK, va="center")
        place += 1.5
    axes.set_ylim(place - 0.8, -0.8)
    axes.set_xlim(0, 1.7)
    axes.axis("off")
    _save(figure, axes, "Seconds for a batch (grey: cannot be right)", path)


def _draw_cost(lines: Sequence[Line], path: Path, device_name: str) -> None:
    priced = [line for line in lines if line.usd_per_1000 is not None]
    figure = _new_figure(0.34 * len(priced) + 1.1)
    axes = figure.subplots()
    costs = [line.usd_per_1000 or 0.0 for line in priced]
    names = [line.figure.work.name for line in priced]
    drawn = axes.barh(names, costs, height=0.7, color=_OURS)
    axes.bar_label(drawn, [f"${cost:.3f}" for cost in costs], padding=3, fontsize=8, color=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(costs) * 1.2 or 1)
    axes.set_xlabel("US dollars, of a busy card's time", fontsize=9)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _save(figure, axes, f"1,000 images on {device_name}", path)


def _new_figure(height: float) -> Figure:
    return Figure(figsize=(8.0, height), facecolor="white", layout="constrained")


def _save(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    axes.set_title(title, fontsize=12, color=_INK, weight="bold", loc="left")
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
