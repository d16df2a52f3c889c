"""Renders a boot as a Gantt chart: a row for each phase and component, lines for moments."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes

from pixpod_tools.boot_report.report import READ, BootReport, Phase
from pixpod_tools.row_chart import BAR, GREY, MARK, save_row_chart

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
ROW_INCHES = 0.3
MOMENT_INCHES = 0.22
"""Height of one moment's label; labels are above the rows, one over the other."""


def save_boot_chart(report: BootReport, path: Path) -> None:
    """Write the chart; the file's ending is its format: svg, png or pdf."""

    def draw(axes: Axes) -> None:
        for row, phase in enumerate(report.phases):
            _draw_bar(axes, row, phase, report.total_s)
        for number, moment in enumerate(report.moments):
            _draw_moment(axes, number, moment, report)

    save_row_chart(
        path,
        title=_title(report),
        subtitle=_subtitle(report),
        labels=[_name(phase) for phase in report.phases],
        unit="seconds since the process began",
        limit=report.total_s,
        row_inches=ROW_INCHES,
        above_inches=MOMENT_INCHES * len(report.moments),
        draw=draw,
    )


def _draw_bar(axes: Axes, row: int, phase: Phase, total_s: float) -> None:
    colour = COLOURS.get(phase.name, _OTHER)
    width = max(phase.took_s, total_s * 0.002)  # a phase that took no time is visible, too
    axes.barh(row, width, left=phase.began_s, height=BAR, color=colour, linewidth=0)
    text = _label(phase)
    is_room_right = phase.ended_s < total_s * 0.72
    is_inside = phase.took_s > total_s * 0.011 * len(text)
    if is_inside:
        place, side, ink = phase.began_s + phase.took_s / 2, "center", "white"
    elif is_room_right:
        place, side, ink = phase.began_s + width + total_s * 0.006, "left", GREY
    else:
        place, side, ink = phase.began_s - total_s * 0.006, "right", GREY
    label = axes.text(place, row, text, va="center", ha=side, fontsize=7.5, color=ink, zorder=3)
    if not is_inside:  # moments pass behind it
        label.set_bbox({"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.6})


def _draw_moment(axes: Axes, number: int, moment: Phase, report: BootReport) -> None:
    """Plot a line through all rows up to its label; labels of later moments are higher."""
    top = 1 + MOMENT_INCHES * (number + 0.5) / (len(report.phases) * ROW_INCHES)
    axes.axvline(
        moment.began_s,
        ymax=top,
        color=MARK,
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
        color=MARK,
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
