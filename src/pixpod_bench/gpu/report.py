"""Renders results of a GPU as tables, JSON and one chart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pixpod.pricing import estimate_cost
from pixpod_bench.chart import OTHERS, OURS, PUBLISHED, Bar, Panel, save_panels
from pixpod_bench.gpu.published import Published, published_of
from pixpod_bench.gpu.results import (
    Entry,
    Failure,
    LoadPoint,
    LoadRow,
    MemoryRow,
    Row,
    StackRow,
    TestRun,
)
from pixpod_bench.gpu.scenarios import PLAIN, Mode, Side
from pixpod_bench.gpu.targets import GPU, judge
from pixpod_bench.report import (
    Columns,
    gib,
    listing,
    or_dash,
    table,
    verdict_document,
    verdict_table,
)

T = TypeVar("T")


class Report:
    """The results of a journal, for a GPU of this name."""

    def __init__(
        self, entries: Iterable[Entry], machine: Mapping[str, object], left_out: Sequence[str]
    ) -> None:
        self._entries = tuple(entries)
        self._machine = machine
        self._device_name = str(machine["device"])
        self._left_out = tuple(left_out)
        self._rows = self._of_kind(Row)
        self._memory = self._of_kind(MemoryRow)
        self._loads = self._of_kind(LoadRow)
        self._stacks = self._of_kind(StackRow)
        self._failures = [each for each in self._entries if isinstance(each.result, Failure)]
        self._tests = next(iter(self._of_kind(TestRun).values()), None)

    @property
    def has_failed(self) -> bool:
        return bool(self._failures) or (self._tests is not None and self._tests.exit_code != 0)

    def speedup(self, row: Row, mode: Mode) -> float | None:
        """Return stock's total time over this row's, for the same work in the same run."""
        for other in self._rows.values():
            if other.side == Side.STOCK and other.mode == mode and _work(other) == _work(row):
                return other.total_ms / row.total_ms
        return None

    def to_plain(self, row: StackRow) -> float | None:
        """Return this row's time over that of the same batch of plain images in the same run."""
        for other in self._stacks.values():
            if other.stack == PLAIN and _stacked_work(other) == _stacked_work(row):
                return row.seconds / other.seconds
        return None

    def usd_per_1000(self, row: Row) -> float | None:
        """Return the price of 1,000 images on a GPU that is never idle, None if unknown."""
        cost = estimate_cost(self._device_name, row.total_ms * 1000 / row.batch_size)
        return cost.estimated_usd

    def tables(self) -> str:
        shown = [found[0] for row in self._rows.values() if (found := self._published(row))]
        notes = dict.fromkeys(f"{each.source} ({each.date})" for each in shown)
        doubts = dict.fromkeys(f"? {each.doubt}" for each in shown if each.doubt)
        failures = (f"{each.slice}: {each.scenario}: {each.result}" for each in self._failures)
        return "".join(
            (
                table("Images", self._columns(), self._rows.items()),
                listing("Published", (*notes, *doubts)),
                table("Memory", _MEMORY, self._memory.items()),
                table("Mixed load", _LOAD, self._points()),
                table("Stacks", self._stack_columns(), self._stacks.items()),
                listing("Failed", failures),
                listing("No time for", self._left_out),
                listing("Tests", [self._tests.summary] if self._tests else []),
                verdict_table(f"Targets on an {GPU}", judge(self._entries)),
            )
        )

    def document(self, command: str) -> dict[str, object]:
        return {
            "benchmark": "gpu",
            "command": command,
            "machine": self._machine,
            "tests": self._tests and asdict(self._tests),
            "images": {
                scenario: asdict(row)
                | {
                    "speedup_to_stock_eager": self.speedup(row, Mode.EAGER),
                    "speedup_to_stock_compiled": self.speedup(row, Mode.COMPILED),
                    "usd_per_1000": self.usd_per_1000(row),
                    "published": [asdict(each) for each in self._published(row)],
                }
                for scenario, row in self._rows.items()
            },
            "memory": {
                scenario: asdict(row) | {"stock_ratio": row.stock_ratio}
                for scenario, row in self._memory.items()
            },
            "load": {scenario: asdict(row) for scenario, row in self._loads.items()},
            "stacks": {
                scenario: asdict(row) | {"to_plain": self.to_plain(row)}
                for scenario, row in self._stacks.items()
            },
            "failures": [asdict(each) for each in self._failures],
            "left_out": list(self._left_out),
            "targets": [verdict_document(verdict) for verdict in judge(self._entries)],
        }

    def draw(self, path: Path) -> None:
        """Save a chart of each work that was measured on both sides, with its published figures."""
        save_panels([self._panel(row) for row in self._rows.values() if self._has_panel(row)], path)

    def _has_panel(self, row: Row) -> bool:
        is_ours = row.side == Side.OURS and row.mode == Mode.COMPILED
        return is_ours and self.speedup(row, Mode.EAGER) is not None

    def _panel(self, row: Row) -> Panel:
        same = [other for other in self._rows.values() if _work(other) == _work(row)]
        bars = [
            Bar(
                f"{other.side} {other.precision} {other.mode}",
                other.total_ms / 1e3,
                OURS if other.side == Side.OURS else OTHERS,
            )
            for other in same
        ]
        bars += [
            Bar(f"published, {each.card}", each.seconds, PUBLISHED)
            for each in self._published(row)
            if not each.doubt
        ]
        work = f"{row.model}, {row.size_px} px, {row.num_inference_steps} steps"
        return Panel(title=f"{work}, x{row.batch_size}", unit="seconds for the batch", bars=bars)

    def _published(self, row: Row) -> Sequence[Published]:
        return published_of(row, self._device_name)

    def _of_kind(self, kind: type[T]) -> dict[str, T]:
        """Return results by scenario; a scenario that two slices share is shown once."""
        return {
            entry.scenario: entry.result
            for entry in self._entries
            if isinstance(entry.result, kind)
        }

    def _points(self) -> list[tuple[str, tuple[LoadRow, LoadPoint]]]:
        return [
            (f"{name}, {point.load:g} of capacity, batching {_ON[point.is_batching]}", (row, point))
            for name, row in self._loads.items()
            for point in row.points
        ]

    def _stack_columns(self) -> Columns[StackRow]:
        return (
            ("to plain", lambda row: or_dash(self.to_plain(row), lambda ratio: f"{ratio:.2f}x")),
            ("seconds", lambda row: f"{row.seconds:.3f}"),
            ("spread", lambda row: f"{row.spread_percent:.1f} %"),
            ("peak GiB", lambda row: or_dash(row.peak_bytes, gib)),
            ("first s", lambda row: f"{row.first_s:.1f}"),
            ("new LoRA s", lambda row: or_dash(row.swap_s, lambda value: f"{value:.3f}")),
            ("graphs", lambda row: f"{row.graphs}+{row.late_graphs}"),
        )

    def _columns(self) -> Columns[Row]:
        def ratio(row: Row, mode: Mode) -> str:
            return or_dash(self.speedup(row, mode), lambda value: f"{value:.2f}x")

        def published(row: Row) -> str:
            found = self._published(row)
            if not found:
                return "-"
            return f"{found[0].seconds:.2f} {found[0].card}{'?' if found[0].doubt else ''}"

        return (
            ("to eager", lambda row: ratio(row, Mode.EAGER)),
            ("to compiled", lambda row: ratio(row, Mode.COMPILED)),
            ("total ms", lambda row: f"{row.total_ms:.1f}"),
            ("spread", lambda row: f"{row.spread_percent:.1f} %"),
            ("p95 ms", lambda row: f"{row.p95_ms:.1f}"),
            ("text ms", lambda row: f"{row.text_encode_ms:.1f}"),
            ("step ms", lambda row: f"{row.step_ms:.1f}"),
            ("decode ms", lambda row: f"{row.decode_ms:.1f}"),
            ("images/s", lambda row: f"{row.images_per_second:.3f}"),
            ("peak GiB", lambda row: or_dash(row.peak_bytes, gib)),
            ("TFLOP/s", lambda row: or_dash(row.teraflop_per_s, lambda rate: f"{rate:.0f}")),
            ("of floor", lambda row: or_dash(row.floor_percent, lambda share: f"{share:.0f} %")),
            ("first s", lambda row: f"{row.first_ms / 1e3:.1f}"),
            ("graphs", lambda row: f"{row.graphs}+{row.late_graphs}"),
            ("$/1,000", lambda row: or_dash(self.usd_per_1000(row), lambda usd: f"{usd:.3f}")),
            ("published s", published),
        )


_ON = {True: "on", False: "off"}

_MEMORY: Columns[MemoryRow] = (
    ("stock / ours", lambda row: or_dash(row.stock_ratio, lambda ratio: f"{ratio:.2f}x")),
    ("stock GiB", lambda row: or_dash(row.stock_bytes, gib)),
    ("allocated GiB", lambda row: or_dash(row.allocated_bytes, gib)),
    ("reserved GiB", lambda row: or_dash(row.reserved_bytes, gib)),
    ("driver GiB", lambda row: or_dash(row.driver_bytes, gib)),
    ("at end GiB", lambda row: or_dash(row.end_reserved_bytes, gib)),
    ("host GiB", lambda row: gib(row.host_peak_bytes)),
    ("onloads", lambda row: str(row.num_onloads)),
    ("onload s", lambda row: f"{row.onload_ms / 1e3:.1f}"),
    ("requests", lambda row: str(row.num_requests)),
    ("seconds", lambda row: f"{row.seconds:.1f}"),
)

_LOAD: Columns[tuple[LoadRow, LoadPoint]] = (
    ("to stock", lambda pair: f"{pair[1].requests_per_s / pair[0].stock_capacity_per_s:.2f}x"),
    ("stock/s", lambda pair: f"{pair[0].stock_capacity_per_s:.3f}"),
    ("offered/s", lambda pair: f"{pair[1].load * pair[0].capacity_per_s:.3f}"),
    ("served/s", lambda pair: f"{pair[1].requests_per_s:.3f}"),
    ("images/s", lambda pair: f"{pair[1].images_per_s:.3f}"),
    ("p50 s", lambda pair: f"{pair[1].p50_s:.2f}"),
    ("p95 s", lambda pair: f"{pair[1].p95_s:.2f}"),
    ("p99 s", lambda pair: f"{pair[1].p99_s:.2f}"),
    ("busy", lambda pair: f"{pair[1].busy_percent:.0f} %"),
)


def _work(row: Row) -> tuple[object, ...]:
    """Return what must be the same for two times to be compared."""
    size = (row.model, row.size_px, row.batch_size, row.num_inference_steps)
    return (*size, row.text_tokens, row.has_guidance)


def _stacked_work(row: StackRow) -> tuple[object, ...]:
    return (row.model, row.precision, row.size_px, row.batch_size, row.num_inference_steps)
