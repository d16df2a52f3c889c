"""Renders a plan as a chart: a bar for the components on the GPU in each stage of each model, and
in the denoising of each stack."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.needs import Need
from pixpod.engine.memory.residency import ResidencyPlan
from pixpod.families import GIB
from pixpod.methods import StagePlan
from pixpod_tools.row_chart import BAR, INK, MARK, save_row_chart

COLOURS = ("#4f8fc0", "#f0a35e", "#6aab8e", "#b8a1d9", "#c26d9b", "#c9b458")
"""Colours of models, in their order; further models reuse them from the first."""

_CUDA, _WORK, _SLOTS = "#9aa5b1", "#dfe4e8", "#8d7966"
_NOTE = "hatched: otherwise offloaded to host memory; pale: activations for one default image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of a bar. `is_passing`: it is onloaded for this stage and may be offloaded then."""

    label: str
    size_bytes: int
    colour: str
    is_passing: bool = False


def save_chart(title: str, plan: ResidencyPlan, path: Path) -> None:
    """Write the chart; the file's ending is its format: svg, png or pdf."""
    assert plan.budget is not None
    gpu_bytes = plan.budget.gpu_bytes
    bars = dict(_bars(plan))

    def draw(axes: Axes) -> None:
        axes.axvline(gpu_bytes / GIB, color=MARK, linewidth=1.2, linestyle=(0, (4, 3)))
        for row, pieces in enumerate(bars.values()):
            _add_bar(axes, row, pieces, gpu_bytes)

    count = len(plan.offloaded)
    where = f"{count} components offloaded" if count else "all resident"
    save_row_chart(
        path,
        title=f"{title}: {gpu_bytes / GIB:.1f} GiB, {where}",
        subtitle=_NOTE,
        labels=list(bars),
        unit="GiB of the GPU",
        limit=gpu_bytes / GIB,
        row_inches=0.42,
        draw=draw,
    )


def _bars(plan: ResidencyPlan) -> Iterator[tuple[str, list[Piece]]]:
    for need in plan.needs:
        for stage in need.stages:
            yield f"{need.model}: {stage.name}", list(_pieces(plan, need, stage))
        for stack in need.declared_stacks:
            for stage in stack.stages:
                if need.denoiser in stage.components or _has_extras(need, stage):
                    yield f"{stack.name}: {stage.name}", list(_pieces(plan, need, stage))


def _has_extras(need: Need, stage: StagePlan) -> bool:
    return any(key.is_extra for key in need.components_of(stage))


def _pieces(plan: ResidencyPlan, need: Need, stage: StagePlan) -> Iterator[Piece]:
    assert plan.budget is not None
    wanted = need.components_of(stage)
    yield Piece(label="CUDA", size_bytes=plan.budget.overhead_bytes, colour=_CUDA)
    for key, size_bytes in plan.sizes.items():
        if key in plan.resident or key in wanted:
            yield Piece(
                label=key.component,
                size_bytes=size_bytes,
                colour=_colour(plan, key),
                is_passing=key not in plan.resident,
            )
    activations_bytes = stage.working_bytes(1) - stage.slot_bytes
    yield Piece(label="activations", size_bytes=activations_bytes, colour=_WORK)
    if stage.slot_bytes:
        yield Piece(label="LoRAs", size_bytes=stage.slot_bytes, colour=_SLOTS)


def _colour(plan: ResidencyPlan, key: ComponentKey) -> str:
    names = list(dict.fromkeys(each.model for each in plan.sizes))
    return COLOURS[names.index(key.model) % len(COLOURS)]


def _add_bar(axes: Axes, row: int, pieces: list[Piece], gpu_bytes: int) -> None:
    begin = 0.0
    for piece in pieces:
        width = piece.size_bytes / GIB
        axes.barh(
            row,
            width,
            left=begin,
            height=BAR,
            color=piece.colour,
            edgecolor="white",
            linewidth=0.8,
            hatch="////" if piece.is_passing else None,
        )
        text = f"{piece.label} {width:.1f}"
        if width * GIB > gpu_bytes * 0.0105 * len(text):
            ink = INK if piece.colour == _WORK else "white"
            words = axes.text(
                begin + width / 2, row, text, va="center", ha="center", fontsize=7.5, color=ink
            )
            if piece.is_passing:
                words.set_bbox({"facecolor": piece.colour, "linewidth": 0, "pad": 1.0})
        begin += width
