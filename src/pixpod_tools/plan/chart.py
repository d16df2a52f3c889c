"""A plan as a chart: one bar for what is on the GPU in each stage of each model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.residency import Budget, ResidencyPlan
from pixpod.families import GIB

COLOURS = ("#4f8fc0", "#f0a35e", "#6aab8e", "#b8a1d9", "#c26d9b", "#c9b458")
"""Colours of models, in their order; further ones begin again."""

_CUDA, _WORK, _INK, _PALE, _LIMIT = "#9aa5b1", "#dfe4e8", "#22303c", "#e4e8ec", "#b3372f"
_NOTE = "hatched: otherwise offloaded to host memory; pale: activations for one default image"
_BAR = 0.72
WIDTH_INCHES = 10.0
ROW_INCHES = 0.42
_LABEL_INCHES, _HEAD_INCHES, _FOOT_INCHES = 2.3, 0.75, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One stretch of a bar. `is_passing`: it is onloaded for this stage, and may go after it."""

    label: str
    size_bytes: int
    colour: str
    is_passing: bool = False


def save_chart(title: str, plan: ResidencyPlan, path: Path) -> None:
    """Write the chart; the file's ending is its format: svg, png or pdf."""
    bars = dict(_bars(plan))
    rows_inches = len(bars) * ROW_INCHES + 0.1
    height = _HEAD_INCHES + rows_inches + _FOOT_INCHES
    with mpl.rc_context(
        {"font.family": "DejaVu Sans", "svg.hashsalt": "plan", "hatch.linewidth": 0.6}
    ):
        figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
        left = _LABEL_INCHES / WIDTH_INCHES
        axes = figure.add_axes((left, _FOOT_INCHES / height, 0.97 - left, rows_inches / height))
        assert plan.budget is not None
        _prepare(axes, list(bars), plan.budget)
        for row, pieces in enumerate(bars.values()):
            _add_bar(axes, row, pieces, plan.budget.gpu_bytes)
        figure.text(
            0.02, 1 - 0.3 / height, _headline(title, plan), fontsize=13, color=_INK, weight="bold"
        )
        figure.text(0.02, 1 - 0.55 / height, _NOTE, fontsize=9, color="#5a6772")
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)


def _bars(plan: ResidencyPlan) -> Iterator[tuple[str, list[Piece]]]:
    for need in plan.needs:
        for stage in need.stages:
            pieces = _pieces(plan, need.components_of(stage), stage.working_bytes(1))
            yield f"{need.model}: {stage.name}", list(pieces)


def _pieces(
    plan: ResidencyPlan, stage: Mapping[ComponentKey, int], working_bytes: int
) -> Iterator[Piece]:
    assert plan.budget is not None
    yield Piece(label="CUDA", size_bytes=plan.budget.overhead_bytes, colour=_CUDA)
    for key, size_bytes in plan.sizes.items():
        if key in plan.resident or key in stage:
            yield Piece(
                label=key.component,
                size_bytes=size_bytes,
                colour=_colour(plan, key),
                is_passing=key not in plan.resident,
            )
    yield Piece(label="activations", size_bytes=working_bytes, colour=_WORK)


def _colour(plan: ResidencyPlan, key: ComponentKey) -> str:
    names = list(dict.fromkeys(each.model for each in plan.sizes))
    return COLOURS[names.index(key.model) % len(COLOURS)]


def _prepare(axes: Axes, labels: list[str], budget: Budget) -> None:
    limit = budget.gpu_bytes / GIB
    axes.set_xlim(0, limit * 1.03)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.tick_params(axis="x", labelsize=8.5, colors="#5a6772", length=3)
    axes.set_xlabel("GiB of the GPU", fontsize=9, color="#5a6772")
    axes.grid(axis="x", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(limit, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8cdd3")


def _add_bar(axes: Axes, row: int, pieces: list[Piece], gpu_bytes: int) -> None:
    begin = 0.0
    for piece in pieces:
        width = piece.size_bytes / GIB
        axes.barh(
            row,
            width,
            left=begin,
            height=_BAR,
            color=piece.colour,
            edgecolor="white",
            linewidth=0.8,
            hatch="////" if piece.is_passing else None,
        )
        text = f"{piece.label} {width:.1f}"
        if width * GIB > gpu_bytes * 0.0105 * len(text):
            ink = _INK if piece.colour == _WORK else "white"
            words = axes.text(
                begin + width / 2, row, text, va="center", ha="center", fontsize=7.5, color=ink
            )
            if piece.is_passing:
                words.set_bbox({"facecolor": piece.colour, "linewidth": 0, "pad": 1.0})
        begin += width


def _headline(title: str, plan: ResidencyPlan) -> str:
    assert plan.budget is not None
    offloaded = len(plan.offloaded)
    where = f"{offloaded} components offloaded" if offloaded else "all resident"
    return f"{title}: {plan.budget.gpu_bytes / GIB:.1f} GiB, {where}"
