"""Bursts of jobs at an endpoint whose workers hold one job, and beside it at one where they hold as
many as the table says: 1 to 4 workers, both scalers.

The platform is the emulator, the SDK is real, and the card is a clock that takes as long as an
H100 would. Prints a table and, last, one line of JSON. Exits 1 if a worker that asked while jobs
waited got none, or if the 95th percentile is worse where more jobs are held.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pixpod.catalog import load_catalog
from pixpod.serving.concurrency import jobs_to_hold
from pixpod_bench.held_jobs.burst import Outcome, Place, run_bursts
from pixpod_bench.held_jobs.card import CardSpec
from pixpod_bench.held_jobs.handler import WorkerSpec
from runpod_emulator.settings import Scaler

LOAD_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model in so many steps as a card's clock sees it: batches of `max_rows` take
    `batch_s` and `row_s` for each row.
    """

    model: str
    steps: int
    batch_s: float
    row_s: float
    max_rows: int

    @property
    def card(self) -> CardSpec:
        return CardSpec(
            batch_s=self.batch_s, row_s=self.row_s, max_rows=self.max_rows, load_s=LOAD_S
        )

    @property
    def max_held_jobs(self) -> int:
        """As the product's table has it."""
        spec = load_catalog()[self.model]
        defaults = replace(spec.defaults, num_inference_steps=self.steps)
        return jobs_to_hold([replace(spec, defaults=defaults)])


WORKLOADS = {
    "flux-dev": Workload(model="flux-dev", steps=28, batch_s=0.0, row_s=2.6, max_rows=1),
    "flux-schnell": Workload(model="flux-schnell", steps=4, batch_s=0.0, row_s=0.4, max_rows=1),
    "sdxl": Workload(model="sdxl", steps=30, batch_s=0.6, row_s=0.8, max_rows=4),
    "sdxl-4-steps": Workload(model="sdxl", steps=4, batch_s=0.14, row_s=0.11, max_rows=8),
}
"""Seconds are the targets for an H100 at 1024 px, alone and in batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The same burst on endpoints that differ only in how many jobs a worker holds."""

    workload: str
    scaler: Scaler
    num_workers: int
    one: Outcome
    table: Outcome

    @property
    def p95_ratio(self) -> float:
        return self.table.p95_s / self.one.p95_s

    @property
    def is_good(self) -> bool:
        return self.p95_ratio <= 1 and self.table.num_left_out == 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    places = [
        (name, scaler, workers)
        for name in given.workloads
        for scaler in given.scalers
        for workers in given.workers
    ]
    cells = [
        measure(*place, num_jobs=given.jobs, scaler_value=given.scaler_value)
        for place in tqdm(places, unit="cell")
    ]
    sys.stdout.write(table(cells) + "\n")
    document = {"benchmark": "held-jobs", "jobs": given.jobs, "cells": [*map(asdict, cells)]}
    sys.stdout.write(json.dumps(document) + "\n")
    return 0 if all(cell.is_good for cell in cells) else 1


def measure(
    workload: str, scaler: Scaler, num_workers: int, *, num_jobs: int, scaler_value: float = 4.0
) -> Cell:
    """Both endpoints at the same time, so that both meet the same machine."""
    spec = WORKLOADS[workload]
    places = {
        name: Place(
            scaler=scaler,
            scaler_value=scaler_value,
            num_workers=num_workers,
            worker=WorkerSpec(card=spec.card, max_held_jobs=max_held_jobs),
        )
        for name, max_held_jobs in (("one", 1), ("table", spec.max_held_jobs))
    }
    with tempfile.TemporaryDirectory() as directory:
        found = run_bursts(places, Path(directory), num_jobs=num_jobs, steps=spec.steps)
    return Cell(workload=workload, scaler=scaler, num_workers=num_workers, **found)


def table(cells: Sequence[Cell]) -> str:
    """As Markdown."""
    titles = "workload", "scaler", "workers", "held", "p50 s", "p95 s", "all s", "jobs of each"
    lines = [f"| {' | '.join(titles)} | p95 to one |", "|---" * (len(titles) + 1) + "|"]
    for cell in cells:
        held = WORKLOADS[cell.workload].max_held_jobs
        place = f"| {cell.workload} | {cell.scaler} | {cell.num_workers} |"
        lines.append(f"{place} 1 | {_columns(cell.one)} | |")
        lines.append(f"{place} {held} | {_columns(cell.table)} | {cell.p95_ratio:.2f} |")
    return "\n".join(lines)


def _columns(outcome: Outcome) -> str:
    shares = " ".join(map(str, outcome.jobs_by_worker))
    return f"{outcome.p50_s:.1f} | {outcome.p95_s:.1f} | {outcome.all_s:.1f} | {shares}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pixpod_bench.held_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--scalers", type=Scaler, nargs="+", choices=[*Scaler], default=[*Scaler])
    parser.add_argument(
        "--scaler-value",
        type=float,
        default=4.0,
        help="seconds of QUEUE_DELAY, requests per worker of REQUEST_COUNT (4, the platform's)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
