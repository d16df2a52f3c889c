"""`chaos` kills workers and refuses results while many jobs run; `throughput` counts jobs.

Each prints a table and, last, one line of JSON. Exits 1 if the emulator broke a promise, or
reached less than 70 % of the ceiling with 4 workers of 32 jobs at once.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pixpod_bench.emulator import report
from pixpod_bench.emulator.chaos import run_chaos
from pixpod_bench.emulator.throughput import measure_cell, measure_loads
from pixpod_bench.emulator.verdict import ChaosSettings


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    # kills and crashes are intended
    logging.basicConfig(level=logging.ERROR)
    work: Callable[[argparse.Namespace], int] = given.work
    return work(given)


def chaos(given: argparse.Namespace) -> int:
    settings = ChaosSettings(
        num_jobs=given.jobs,
        num_workers=given.workers,
        concurrency=given.concurrency,
        max_retries=given.retries,
        kill_every=given.kill_every,
        seed=given.seed,
    )
    run = report.describe_run()
    with tempfile.TemporaryDirectory() as state_dir, _bar(given.jobs) as bar:

        def show(num_ended: int) -> None:
            bar.update(num_ended - bar.n)

        result = asyncio.run(run_chaos(settings, Path(state_dir), show))
    sys.stdout.write(report.chaos_summary(result) + "\n")
    sys.stdout.write(report.document("emulator-chaos", run, result.document()))
    return 1 if result.broken_promises() else 0


def throughput(given: argparse.Namespace) -> int:
    run = report.describe_run()
    places = [(workers, slots) for workers in given.workers for slots in given.concurrency]
    cells = [
        asyncio.run(measure_cell(workers, slots, given.rounds))
        for workers, slots in tqdm(places, unit="cell")
    ]
    results: dict[str, object] = {"cells": report.cells_document(cells)}
    sys.stdout.write(report.cells_table(cells) + "\n")
    if given.load_seconds:
        full, half = asyncio.run(measure_loads(given.load_seconds))
        loads = {"full": full, "half": half}
        sys.stdout.write(report.loads_table(loads) + "\n")
        results["load"] = {name: asdict(load) for name, load in loads.items()}
    sys.stdout.write(report.document("emulator-throughput", run, results))
    return 1 if any(cell.is_too_slow for cell in cells) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/emulator_bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="chaos | throughput")
    shaken = benchmarks.add_parser("chaos", help="each job must end as promised")
    shaken.set_defaults(work=chaos)
    usual = ChaosSettings()
    for flag, default, meaning in (
        ("--jobs", usual.num_jobs, "submitted at once"),
        ("--workers", usual.num_workers, "of the real SDK"),
        ("--concurrency", usual.concurrency, "jobs of one worker at a time"),
        ("--retries", usual.max_retries, "of a job whose worker is lost; the platform's is 1"),
        ("--kill-every", usual.kill_every, "jobs that have ended"),
        ("--seed", usual.seed, "of who is killed and what is refused"),
    ):
        shaken.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{meaning}; default {default}"
        )
    measured = benchmarks.add_parser("throughput", help="jobs per second, beside the SDK's ceiling")
    measured.set_defaults(work=throughput)
    add = measured.add_argument
    add("--workers", type=_numbers, default=(1, 2, 4), metavar="N,N", help="default 1,2,4")
    add("--concurrency", type=_numbers, default=(1, 8, 32), metavar="N,N", help="default 1,8,32")
    add("--rounds", type=int, default=10, metavar="N", help="jobs for each slot; default 10")
    add(
        "--load-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="of each load by /run and /status, 0 for none; default 10",
    )
    return parser


def _bar(num_jobs: int) -> "tqdm[NoReturn]":
    return tqdm(total=num_jobs, unit="job", mininterval=1.0)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
