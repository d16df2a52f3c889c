"""Rows to a table and to JSON, with what is needed to judge them: machine, versions, command."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import TypeVar

import torch

from pixpod.engine.loading import name_device
from pixpod_bench.measure import Failure, Row

T = TypeVar("T")

_Column = tuple[str, Callable[[Row], str]]

COLUMNS: tuple[_Column, ...] = (
    ("scenario", lambda row: row.scenario),
    ("text ms", lambda row: f"{row.text_encode_ms:.1f}"),
    ("denoise ms", lambda row: f"{row.denoise_ms:.1f}"),
    ("step ms", lambda row: f"{row.step_ms:.1f}"),
    ("decode ms", lambda row: f"{row.decode_ms:.1f}"),
    ("total ms", lambda row: f"{row.total_ms:.1f}"),
    ("spread", lambda row: f"{row.spread_percent:.1f} %"),
    ("images/s", lambda row: f"{row.images_per_second:.3f}"),
    ("peak GiB", lambda row: _or_dash(row.peak_bytes, lambda peak: f"{peak / 2**30:.2f}")),
    ("TFLOP/s", lambda row: _or_dash(row.teraflop_per_s, lambda rate: f"{rate:.0f}")),
    ("fp8 layers", lambda row: str(row.float8_layers)),
    ("speedup", lambda row: _or_dash(row.speedup, lambda speedup: f"{speedup:.2f}x")),
)
"""`speedup` is of denoising over bfloat16, eager, at the same size and batch."""


def format_table(results: Iterable[Row | Failure]) -> str:
    """One line per result; a failure says its reason."""
    results = tuple(results)
    rows = [result for result in results if isinstance(result, Row)]
    lines = [[title for title, _ in COLUMNS]]
    lines += [[show(row) for _, show in COLUMNS] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    table = [_line(cells, widths) for cells in lines]
    table.insert(1, "  ".join("-" * width for width in widths))
    table += [
        f"{result.scenario}: {result.reason}" for result in results if isinstance(result, Failure)
    ]
    return "\n".join(table) + "\n"


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


def make_report(
    machine: dict[str, object],
    command: str,
    tests: dict[str, object] | None,
    results: Iterable[Row | Failure],
) -> dict[str, object]:
    """What is written as JSON. `tests` is None when they were not asked for."""
    results = tuple(results)
    return {
        "benchmark": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "tests": tests,
        "rows": [asdict(result) for result in results if isinstance(result, Row)],
        "failures": [asdict(result) for result in results if isinstance(result, Failure)],
    }


def _line(cells: list[str], widths: list[int]) -> str:
    """The first column to the left, figures to the right."""
    first, *rest = [
        cell.ljust(width) if number == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest])


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
