"""Results to tables and to JSON, with what is needed to judge them: machine, versions, command."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import TypeVar

import torch

from pixpod.engine.device import name_device
from pixpod_bench.results import (
    Entry,
    Failure,
    LoadPoint,
    LoadRow,
    MemoryRow,
    OverlapRow,
    Row,
    VaeRow,
)
from pixpod_bench.scenarios import Mode, Side
from pixpod_bench.targets import CARD, Verdict, judge

T = TypeVar("T")

_Columns = tuple[tuple[str, Callable[[T], str]], ...]


def stock_speedup(rows: Sequence[Row], row: Row, mode: Mode) -> float | None:
    """How much faster than diffusers in 16 bits, the same work in the same run; None if that was
    not measured.
    """
    stock_ms = next(
        (
            other.total_ms
            for other in rows
            if other.side == Side.STOCK and other.mode == mode and _work(other) == _work(row)
        ),
        None,
    )
    return stock_ms / row.total_ms if stock_ms else None


def rows_of(entries: Iterable[Entry], kind: type[T]) -> dict[str, T]:
    """Results of one kind by scenario; what two slices have in common is told once."""
    return {entry.scenario: entry.result for entry in entries if isinstance(entry.result, kind)}


def format_tables(entries: Sequence[Entry], left_out: Sequence[str]) -> str:
    """All tables, one after the other; what failed, or was left out, says why."""
    drawings = rows_of(entries, Row)
    failures = [
        f"  {entry.slice}: {entry.scenario}: {entry.result.reason}\n"
        for entry in entries
        if isinstance(entry.result, Failure)
    ]
    parts = [
        _titled("Drawing", _drawing_columns(tuple(drawings.values())), drawings),
        _titled("Decoding", _VAE, rows_of(entries, VaeRow)),
        _titled("Decoding beside the next", _OVERLAP, rows_of(entries, OverlapRow)),
        _titled("Memory", _MEMORY, rows_of(entries, MemoryRow)),
        _titled("Mixed load", _LOAD, _points(rows_of(entries, LoadRow))),
        "".join(["\nFailed\n\n", *failures]) if failures else "",
        "".join(["\nNo time for\n\n", *(f"  {name}\n" for name in left_out)]) if left_out else "",
        format_verdicts(judge(entries)),
    ]
    return "".join(parts)


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """`not measured` where there is no figure. The targets are for one kind of card."""
    columns: _Columns[Verdict] = (
        ("wanted", lambda each: f"{'>=' if each.at_least else '<='} {each.limit:.2f} {each.unit}"),
        ("found", lambda each: _or_dash(each.value, lambda value: f"{value:.2f} {each.unit}")),
        ("", lambda each: _VERDICT[each.is_met]),
    )
    title = f"Targets on an {CARD}"
    return _titled(title, columns, {verdict.target: verdict for verdict in verdicts})


def make_document(
    machine: Mapping[str, object],
    command: str,
    tests: Mapping[str, object] | None,
    entries: Sequence[Entry],
    left_out: Sequence[str],
) -> dict[str, object]:
    """What is written as JSON. `tests` is None when they were not asked for."""
    rows = tuple(rows_of(entries, Row).values())
    return {
        "benchmark": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "tests": tests,
        "drawing": {
            scenario: asdict(row) | _speedups(rows, row)
            for scenario, row in rows_of(entries, Row).items()
        },
        "vae": {scenario: asdict(row) for scenario, row in rows_of(entries, VaeRow).items()},
        "overlap": {
            scenario: asdict(row) for scenario, row in rows_of(entries, OverlapRow).items()
        },
        "memory": {scenario: asdict(row) for scenario, row in rows_of(entries, MemoryRow).items()},
        "load": {scenario: asdict(row) for scenario, row in rows_of(entries, LoadRow).items()},
        "failures": [
            {"slice": entry.slice, "scenario": entry.scenario, "reason": entry.result.reason}
            for entry in entries
            if isinstance(entry.result, Failure)
        ],
        "left_out": list(left_out),
        "targets": [asdict(verdict) | {"is_met": verdict.is_met} for verdict in judge(entries)],
    }


def describe_machine(device: torch.device) -> dict[str, object]:
    """The card, its driver and every version that can change a figure."""
    packages = ("diffusers", "transformers", "torchao", "accelerate")
    return {
        "device": name_device(device),
        "driver": _driver() if device.type == "cuda" else None,
        "memory_bytes": _memory_bytes(device),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _cudnn_version() if device.type == "cuda" else None,
        "torch_threads": torch.get_num_threads(),
        **{package: metadata.version(package) for package in packages},
    }


def _drawing_columns(rows: Sequence[Row]) -> _Columns[Row]:
    def speedup(mode: Mode) -> Callable[[Row], str]:
        return lambda row: _or_dash(stock_speedup(rows, row, mode), lambda ratio: f"{ratio:.2f}x")

    return (
        ("text ms", lambda row: f"{row.text_encode_ms:.1f}"),
        ("step ms", lambda row: f"{row.step_ms:.1f}"),
        ("decode ms", lambda row: f"{row.decode_ms:.1f}"),
        ("total ms", lambda row: f"{row.total_ms:.1f}"),
        ("p95 ms", lambda row: f"{row.p95_ms:.1f}"),
        ("spread", lambda row: f"{row.spread_percent:.1f} %"),
        ("images/s", lambda row: f"{row.images_per_second:.3f}"),
        ("peak GiB", lambda row: _or_dash(row.peak_bytes, _gib)),
        ("TFLOP/s", lambda row: _or_dash(row.teraflop_per_s, lambda rate: f"{rate:.0f}")),
        ("of floor", lambda row: _or_dash(row.floor_percent, lambda share: f"{share:.0f} %")),
        ("first s", lambda row: f"{row.first_ms / 1e3:.1f}"),
        ("graphs", lambda row: f"{row.graphs}+{row.late_graphs}"),
        ("to eager", speedup(Mode.EAGER)),
        ("to compiled", speedup(Mode.COMPILED)),
    )


_VAE: _Columns[VaeRow] = (
    ("decode ms", lambda row: f"{row.decode_ms:.1f}"),
    ("spread", lambda row: f"{row.spread_percent:.1f} %"),
    ("first s", lambda row: f"{row.first_ms / 1e3:.1f}"),
    ("peak GiB", lambda row: _or_dash(row.peak_bytes, lambda size: _gib(size))),
)

_OVERLAP: _Columns[OverlapRow] = (
    ("decode ms", lambda row: f"{row.decode_ms:.1f}"),
    ("in turns ms", lambda row: f"{row.in_turns_ms:.1f}"),
    ("beside ms", lambda row: f"{row.beside_ms:.1f}"),
    ("gain", lambda row: f"{row.gain:.2f}x"),
)

_MEMORY: _Columns[MemoryRow] = (
    ("requests", lambda row: str(row.num_requests)),
    ("seconds", lambda row: f"{row.seconds:.1f}"),
    ("swaps", lambda row: f"{row.num_swaps}"),
    ("swapping s", lambda row: f"{row.swap_ms / 1e3:.1f}"),
    ("allocated GiB", lambda row: _or_dash(row.allocated_bytes, lambda size: _gib(size))),
    ("reserved GiB", lambda row: _or_dash(row.reserved_bytes, lambda size: _gib(size))),
    ("driver GiB", lambda row: _or_dash(row.driver_bytes, lambda size: _gib(size))),
    ("at end GiB", lambda row: _or_dash(row.end_reserved_bytes, lambda size: _gib(size))),
    ("host GiB", lambda row: _gib(row.host_peak_bytes)),
)

_LOAD: _Columns[tuple[LoadRow, LoadPoint]] = (
    ("offered/s", lambda pair: f"{pair[1].load * pair[0].capacity_per_s:.3f}"),
    ("served/s", lambda pair: f"{pair[1].requests_per_s:.3f}"),
    ("images/s", lambda pair: f"{pair[1].images_per_s:.3f}"),
    ("p50 s", lambda pair: f"{pair[1].p50_s:.2f}"),
    ("p95 s", lambda pair: f"{pair[1].p95_s:.2f}"),
    ("p99 s", lambda pair: f"{pair[1].p99_s:.2f}"),
    ("busy", lambda pair: f"{pair[1].busy_percent:.0f} %"),
)

_VERDICT = {True: "met", False: "MISSED", None: "not measured"}


def _points(rows: Mapping[str, LoadRow]) -> dict[str, tuple[LoadRow, LoadPoint]]:
    return {
        f"{scenario}, {point.load:g} of capacity, batching {_on(point.is_batching)}": (row, point)
        for scenario, row in rows.items()
        for point in row.points
    }


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _titled(title: str, columns: _Columns[T], rows: Mapping[str, T]) -> str:
    """A table, or nothing where there are no rows."""
    if not rows:
        return ""
    lines = [[title, *(name for name, _ in columns)]]
    lines += [[name, *(show(row) for _, show in columns)] for name, row in rows.items()]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n" + "".join(f"{_line(cells, widths)}\n" for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, figures to the right."""
    first, *rest = [
        cell.ljust(width) if number == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest])


def _work(row: Row) -> tuple[object, ...]:
    """What must be the same for two times to be compared."""
    size = (row.model, row.size_px, row.batch, row.num_inference_steps)
    return (*size, row.text_tokens, row.has_guidance)


def _speedups(rows: Sequence[Row], row: Row) -> dict[str, object]:
    return {
        "speedup_to_stock_eager": stock_speedup(rows, row, Mode.EAGER),
        "speedup_to_stock_compiled": stock_speedup(rows, row, Mode.COMPILED),
    }


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f}"


def _or_dash(value: T | None, show: Callable[[T], str]) -> str:
    return "-" if value is None else show(value)


def _memory_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def _cudnn_version() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def _driver() -> str | None:
    """Driver, power limit and highest clock; torch knows none of them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    fields = "driver_version,power.limit,clocks.max.sm"
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return found.stdout.strip().splitlines()[0]
