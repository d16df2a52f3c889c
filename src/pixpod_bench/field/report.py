"""Figures beside published ones, as a table and as JSON, with what 1,000 images cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pixpod.pricing import PriceList
from pixpod_bench.field.results import Figure, NotMeasured
from pixpod_bench.field.works import Published, published_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A figure, what it costs here, and what was published of the same work, nearest first."""

    figure: Figure
    usd_per_1000: float | None
    published: tuple[Published, ...]

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the published figure that is shown beside it."""
        return self.published[0].seconds / self.figure.seconds if self.published else None


def make_lines(
    results: Sequence[Figure | NotMeasured],
    published: Sequence[Published],
    prices: PriceList,
    device_name: str,
) -> tuple[Line, ...]:
    return tuple(
        Line(
            figure=result,
            usd_per_1000=usd_per_1000(result, prices, device_name),
            published=published_of(result.work, published, device_name),
        )
        for result in results
        if isinstance(result, Figure)
    )


def usd_per_1000(figure: Figure, prices: PriceList, device_name: str) -> float | None:
    """Of the card's time that a busy worker is paid for: without its start and idle time. None
    where no price is known.
    """
    thousand_ms = figure.device_ms * 1000 / figure.work.batch
    return prices.cost(device_name, thousand_ms).estimated_usd


_COLUMNS: tuple[tuple[str, Callable[[Line], str]], ...] = (
    ("what", lambda line: line.figure.work.name),
    ("precision", lambda line: line.figure.precision),
    ("s", lambda line: f"{line.figure.seconds:.2f}"),
    ("spread", lambda line: f"{line.figure.spread_percent:.0f} %"),
    ("images/h", lambda line: f"{line.figure.images_per_hour:.0f}"),
    ("peak GiB", lambda line: _number(line.figure.peak_bytes, lambda size: f"{size / 2**30:.1f}")),
    ("$/1,000", lambda line: _number(line.usd_per_1000, lambda usd: f"{usd:.3f}")),
    ("published s", lambda line: _shown(line, lambda each: f"{each.seconds:.2f}")),
    ("images/h", lambda line: _shown(line, lambda each: f"{each.images_per_hour:.0f}")),
    ("on", lambda line: _shown(line, lambda each: each.card + ("?" if each.doubt else ""))),
    ("faster", lambda line: _number(line.ratio, lambda ratio: f"{ratio:.2f}x")),
)
_WORDS = {"what", "precision", "on"}


def format_table(lines: Sequence[Line], missing: Sequence[NotMeasured], prices: str) -> str:
    """A table, its sources and doubts, and what was not measured."""
    cells = [[title for title, _ in _COLUMNS]]
    cells += [[show(line) for _, show in _COLUMNS] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    table = "".join(_format_row(row, widths) for row in cells)
    shown = dict.fromkeys(line.published[0] for line in lines if line.published)
    notes = dict.fromkeys(f"{each.source} ({each.date})" for each in shown)
    doubts = dict.fromkeys(f"? {each.doubt}" for each in shown if each.doubt)
    warnings = dict.fromkeys(text for line in lines for text in line.figure.warnings)
    parts = (
        ("Prices", (prices,)),
        ("Published", (*notes, *doubts)),
        ("Warnings", warnings),
        ("Not measured", [f"{each.work.name}: {each.reason}" for each in missing]),
    )
    return table + "".join(
        f"\n{title}\n" + "".join(f"  {text}\n" for text in texts) for title, texts in parts if texts
    )


def make_document(
    machine: Mapping[str, object],
    command: str,
    lines: Sequence[Line],
    missing: Sequence[NotMeasured],
    basis: str,
) -> dict[str, object]:
    """What is written as JSON: all published figures of each work, not only the one shown."""
    return {
        "benchmark": "field",
        "command": command,
        "machine": machine,
        "prices": basis,
        "rows": [
            asdict(line.figure)
            | {
                "images_per_hour": line.figure.images_per_hour,
                "usd_per_1000": line.usd_per_1000,
                "published": [asdict(each) for each in line.published],
                "ratio": line.ratio,
            }
            for line in lines
        ],
        "not_measured": [asdict(each) for each in missing],
    }


def _format_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, figures to the right."""
    titles = [title for title, _ in _COLUMNS]
    return (
        "  ".join(
            cell.ljust(width) if title in _WORDS else cell.rjust(width)
            for title, cell, width in zip(titles, cells, widths, strict=True)
        ).rstrip()
        + "\n"
    )


def _shown(line: Line, show: Callable[[Published], str]) -> str:
    return show(line.published[0]) if line.published else "-"


def _number(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)
