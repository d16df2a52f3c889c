"""Renders results as a table and as one line of JSON, with the facts needed to judge them."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from time import perf_counter, sleep

from pixpod_bench.emulator.processes import NUM_CORES, machine_busy_s
from pixpod_bench.emulator.throughput import Cell, Load
from pixpod_bench.emulator.verdict import ChaosResult

PACKAGES = ("runpod", "aiohttp")
LOOK_AROUND_S = 1.0


def describe_run() -> dict[str, object]:
    """Describe the machine, including its load; call this before a measurement starts."""
    busy_s, started_at = machine_busy_s(), perf_counter()
    sleep(LOOK_AROUND_S)
    load = (machine_busy_s() - busy_s) / (perf_counter() - started_at) / NUM_CORES
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": NUM_CORES,
        "machine_load_before": round(load, 2),
        "python": sys.version.split()[0],
        **{package: metadata.version(package) for package in PACKAGES},
    }


def document(benchmark: str, run: Mapping[str, object], results: Mapping[str, object]) -> str:
    """Return the JSON that is the last line of output."""
    return json.dumps({"benchmark": benchmark, "run": run, **results}) + "\n"


def chaos_summary(result: ChaosResult) -> str:
    """Render figures, then each conspicuous job with its history, then the verdict."""
    figures = result.document()
    broken = figures.pop("broken_promises")
    lines = [f"{name.replace('_', ' '):<20}  {value}" for name, value in figures.items()]
    for job in result.conspicuous:
        lines += ["", f"{job.id} {job.status}: {job.error}"]
        lines += [
            f"  {event.at - job.created_at:7.2f} s  {event.status:<11}  {event.reason}"
            + (f"  ({event.worker_id})" if event.worker_id else "")
            for event in job.history
        ]
    lines += ["", "broken promises:" if broken else "every promise was kept"]
    lines += [f"  {promise}" for promise in result.broken_promises()]
    return "\n".join(lines) + "\n"


def cells_table(cells: Sequence[Cell]) -> str:
    titles = (
        *("workers", "concurrency", "emulator jobs/s", "ceiling jobs/s", "ratio"),
        *("CPU ms/job", "machine busy", "at the ceiling", "by others"),
    )
    return _table(
        titles,
        [
            (
                str(cell.num_workers),
                str(cell.concurrency),
                f"{cell.emulator.jobs_per_s:.1f}",
                f"{cell.ceiling.jobs_per_s:.1f}",
                f"{cell.ratio:.0%}",
                f"{cell.emulator.cpu_ms_per_job:.2f}",
                f"{cell.emulator.machine_load:.0%}",
                f"{cell.ceiling.machine_load:.0%}",
                f"{cell.others_load:.0%}",
            )
            for cell in cells
        ],
    )


def loads_table(loads: Mapping[str, Load]) -> str:
    titles = (
        *("load", "requests/s", "jobs/s", "run p50 ms", "run p99 ms"),
        *("status p50 ms", "status p99 ms", "CPU ms/job", "server's core", "machine busy"),
    )
    return _table(
        titles,
        [
            (
                name,
                f"{load.requests_per_s:.0f}",
                f"{load.jobs.jobs_per_s:.0f}",
                f"{load.run.p50_ms:.1f}",
                f"{load.run.p99_ms:.1f}",
                f"{load.status.p50_ms:.1f}",
                f"{load.status.p99_ms:.1f}",
                f"{load.jobs.cpu_ms_per_job:.2f}",
                f"{load.jobs.server_load:.0%}",
                f"{load.jobs.machine_load:.0%}",
            )
            for name, load in loads.items()
        ],
    )


def cells_document(cells: Sequence[Cell]) -> list[dict[str, object]]:
    return [{**asdict(cell), "ratio": cell.ratio} for cell in cells]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a right-aligned Markdown table row."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "".join(
        "| " + " | ".join(cell.rjust(n) for cell, n in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
