"""Results of a card as pictures: times beside diffusers and the floor, batches, mixed load."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixpod_bench.report import rows_of
from pixpod_bench.results import Entry, LoadRow, Row
from pixpod_bench.scenarios import Side

COLOURS: Mapping[str, str] = {
    f"{Side.STOCK} eager": "#9aa5b1",
    f"{Side.STOCK} compiled": "#4f8fc0",
    f"{Side.OURS} eager": "#f3c8a0",
    f"{Side.OURS} compiled": "#f0a35e",
    f"{Side.OURS} graphs": "#e07a5f",
}
_LINES = ("#f0a35e", "#4f8fc0", "#6aab8e", "#81609e", "#e07a5f", "#22303c", "#9aa5b1")
_INK, _PALE, _FLOOR = "#22303c", "#e4e8ec", "#b3372f"


def draw_charts(entries: Sequence[Entry], folder: Path, device: str) -> list[Path]:
    """Those for which there is something to draw; their files."""
    rows = tuple(rows_of(entries, Row).values())
    loads = rows_of(entries, LoadRow)
    compared = [row for row in rows if row.batch == 1 and _is_compared(row, rows)]
    drawn = []
    if compared:
        drawn.append(_draw_times(compared, folder / "gpu-times.svg", device))
    if len({row.batch for row in rows}) > 1:
        drawn.append(_draw_batches(rows, folder / "gpu-batches.svg", device))
    if loads:
        drawn.append(_draw_loads(loads, folder / "gpu-load.svg", device))
    return drawn


def _is_compared(row: Row, rows: Sequence[Row]) -> bool:
    """Whether both sides did this work."""
    return len({other.side for other in rows if _title(other) == _title(row)}) > 1


def _title(row: Row) -> str:
    guidance = "" if row.has_guidance else ", no guidance"
    return f"{row.model}, {row.num_inference_steps} steps, {row.size_px} px{guidance}"


def _draw_times(rows: Sequence[Row], path: Path, device: str) -> Path:
    """A group of bars for each work; a line where the card's arithmetic would end."""
    titles = list(dict.fromkeys(_title(row) for row in rows))
    figure = _new_figure(8.0, 1.2 + 0.28 * len(rows) + 0.35 * len(titles))
    axes = figure.subplots()
    places: list[float] = []
    place = 0.0
    for title in titles:
        group = [row for row in rows if _title(row) == title]
        axes.text(0, place, title, fontsize=9, color=_INK, weight="bold", va="center")
        for row in group:
            place += 1
            _draw_bar(axes, place, row)
            places.append(place)
        place += 1.4
    axes.set_ylim(place - 0.6, -0.8)
    axes.set_yticks([])
    axes.set_xlim(0, max(row.total_ms for row in rows) / 1e3 * 1.45)
    axes.set_xlabel(
        "seconds an image; red: the least that the card's arithmetic allows", fontsize=9
    )
    return _save(figure, axes, f"One image on {device}", path)


def _draw_bar(axes: Axes, place: float, row: Row) -> None:
    seconds = row.total_ms / 1e3
    name = f"{row.side} {row.mode}"
    axes.barh(place, seconds, height=0.8, color=COLOURS.get(name, _PALE))
    label = f" {seconds:.2f} s  {name}, {row.precision}"
    axes.text(seconds, place, label, fontsize=8, color=_INK, va="center")
    if row.floor_percent:
        floor_s = row.denoise_ms * row.floor_percent / 100 / 1e3
        axes.plot([floor_s, floor_s], [place - 0.4, place + 0.4], color=_FLOOR, linewidth=1.5)


def _draw_batches(rows: Sequence[Row], path: Path, device: str) -> Path:
    """Images per second over the size of a batch, a line for each way to draw."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        tokens = f", {row.text_tokens} tokens" if row.text_tokens else ""
        key = f"{_title(row)}{tokens}: {row.side} {row.precision} {row.mode}"
        lines.setdefault(key, []).append(row)
    lines = {key: line for key, line in lines.items() if len({row.batch for row in line}) > 1}
    figure = _new_figure(8.0, 3.6 + 0.18 * len(lines))
    axes = figure.subplots()
    for number, (key, line) in enumerate(lines.items()):
        line = sorted(line, key=lambda row: row.batch)
        axes.plot(
            [row.batch for row in line],
            [row.images_per_second for row in line],
            marker="o",
            linestyle=("-", "--", ":")[number // len(_LINES) % 3],
            color=_LINES[number % len(_LINES)],
            label=key,
        )
    axes.set_xscale("log", base=2)
    batches = sorted({row.batch for row in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch", fontsize=9)
    axes.set_ylabel("images/s", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=7, frameon=False)
    return _save(figure, axes, f"Batches on {device}", path)


def _draw_loads(rows: Mapping[str, LoadRow], path: Path, device: str) -> Path:
    """How long requests take over how many come, with and without batching."""
    figure = _new_figure(6.0, 3.6)
    axes = figure.subplots()
    for row in rows.values():
        for is_batching, colour in ((False, _LINES[1]), (True, _LINES[0])):
            points = [point for point in row.points if point.is_batching == is_batching]
            axes.plot(
                [point.load for point in points],
                [point.p95_s for point in points],
                marker="o",
                color=colour,
                label=f"p95, batching {'on' if is_batching else 'off'}",
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests that come, of what can be drawn one by one", fontsize=9)
    axes.set_ylabel("seconds", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return _save(figure, axes, f"Mixed load on {device}", path)


def _new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def _save(figure: Figure, axes: Axes, title: str, path: Path) -> Path:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.set_title(title, fontsize=12, color=_INK, weight="bold", loc="left")
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
    return path
