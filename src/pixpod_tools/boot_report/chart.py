"""A boot as a Gantt chart: a row for each phase and component, lines for the moments."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod_tools.boot_report.report import READ, BootReport, Phase

COLOURS: Mapping[str, str] = {
    "start": "#9aa5b1",
    "sdk": "#7b8794",
    "import": "#f0a35e",
    "device": "#e07a5f",
    "fetch": "#8fb8de",
    READ: "#4f8fc0",
    "build": "#b8a1d9",
    "bind": "#81609e",
    "quantize": "#c26d9b",
    "warm": "#6aab8e",
}
_OTHER = "#c8cdd3"
_INK, _PALE, _MOMENT = "#22303c", "#e4e8ec", "#b3372f"

WIDTH_INCHES = 10.0
ROW_INCHES = 0.3
LABEL_INCHES = 2.1
"""Of the names beside the rows."""

MOMENT_INCHES = 0.22
"""Of one moment's words; they stand above the rows, one over the other."""

_HEAD_INCHES, _FOOT_INCHES, _RIM_INCHES = 0.75, 0.6, 0.1
_BAR = 0.72


def draw_boot(report: BootReport, path: Path) -> None:
    """Write the chart; the file's ending is its format: svg, png or pdf."""
    rows_inches = len(report.phases) * ROW_INCHES + _RIM_INCHES
    height = _HEAD_INCHES + MOMENT_INCHES * len(report.moments) + rows_inches + _FOOT_INCHES
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "boot"}):
        figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
        left = LABEL_INCHES / WIDTH_INCHES
        axes = figure.add_axes((left, _FOOT_INCHES / height, 0.97 - left, rows_inches / height))
        _prepare(axes, report)
        for row, phase in enumerate(report.phases):
            _draw_bar(axes, row, phase, report.total_s)
        for number, moment in enumerate(report.moments):
            _draw_moment(axes, number, moment, report)
        figure.text(0.02, 1 - 0.3 / height, _title(report), fontsize=13, color=_INK, weight="bold")
        figure.text(0.02, 1 - 0.55 / height, _subtitle(report), fontsize=9, color="#5a6772")
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)


def _prepare(axes: Axes, report: BootReport) -> None:
    rows = len(report.phases)
    axes.set_xlim(0, report.total_s * 1.02)
    axes.set_ylim(rows - 0.4, -0.7)
    axes.set_yticks(range(rows), [_name(phase) for phase in report.phases], fontsize=8.5)
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.tick_params(axis="x", labelsize=8.5, colors="#5a6772", length=3)
    axes.set_xlabel("seconds since the process began", fontsize=9, color="#5a6772")
    axes.grid(axis="x", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8cdd3")


def _draw_bar(axes: Axes, row: int, phase: Phase, total_s: float) -> None:
    colour = COLOURS.get(phase.name, _OTHER)
    width = max(phase.took_s, total_s * 0.002)  # what took no time is still to be seen
    axes.barh(row, width, left=phase.began_s, height=_BAR, color=colour, linewidth=0)
    text = _label(phase)
    is_room_right = phase.ended_s < total_s * 0.72
    is_inside = phase.took_s > total_s * 0.011 * len(text)
    if is_inside:
        place, side, ink = phase.began_s + phase.took_s / 2, "center", "white"
    elif is_room_right:
        place, side, ink = phase.began_s + width + total_s * 0.006, "left", "#5a6772"
    else:
        place, side, ink = phase.began_s - total_s * 0.006, "right", "#5a6772"
    label = axes.text(place, row, text, va="center", ha=side, fontsize=7.5, color=ink, zorder=3)
    if not is_inside:  # moments pass behind it
        label.set_bbox({"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.6})


def _draw_moment(axes: Axes, number: int, moment: Phase, report: BootReport) -> None:
    """A line through all rows and up to its words; words of later moments stand higher."""
    rows_inches = len(report.phases) * ROW_INCHES + _RIM_INCHES
    top = 1 + MOMENT_INCHES * (number + 0.5) / rows_inches
    axes.axvline(
        moment.began_s,
        ymax=top,
        color=_MOMENT,
        linewidth=1,
        linestyle=(0, (4, 3)),
        alpha=0.85,
        clip_on=False,
    )
    is_right = moment.began_s > report.total_s * 0.6
    text = " ".join(filter(None, (moment.name.replace("_", " "), moment.subject)))
    axes.annotate(
        f"{text}  {moment.began_s:.2f} s",
        xy=(moment.began_s, top),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if is_right else 5, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="center",
        fontsize=8.5,
        color=_MOMENT,
        bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8},
        annotation_clip=False,
    )


def _name(phase: Phase) -> str:
    return " ".join(filter(None, (phase.name, phase.subject.replace("/", " "))))


def _label(phase: Phase) -> str:
    rate = phase.gigabytes_per_s
    if phase.size_bytes is None or rate is None:
        return f"{phase.took_s:.2f} s"
    return f"{_size(phase.size_bytes)}, {rate:.1f} GB/s"


def _size(size_bytes: int) -> str:
    if size_bytes < 1e8:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.2f} GB"


def _title(report: BootReport) -> str:
    last = max(report.moments or report.phases, key=lambda phase: phase.ended_s)
    name = ": ".join(filter(None, (last.subject, last.name.replace("_", " "))))
    return f"{name} after {last.ended_s:.1f} s"


def _subtitle(report: BootReport) -> str:
    reads = [
        f"{read.subject}: {_size(read.size_bytes)} in {read.took_s:.2f} s, {rate:.2f} GB/s"
        for read in report.reads
        if read.size_bytes is not None and (rate := read.gigabytes_per_s) is not None
    ]
    return "; ".join(reads)
