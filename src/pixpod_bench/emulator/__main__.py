"""`chaos` kills workers and refuses results while many jobs run; `throughput` counts jobs;
`compare` measures both and the idle cost beside the emulator of another checkout.

Each prints a table and, last, one line of JSON. Exits 1 if the emulator broke a promise,
reached less than 70 % of the ceiling with 4 workers of 32 jobs at once, or is worse than the base:
the 95 % interval of a ratio reaches above 1.05.
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

from pixpod_bench.base_checkout import find_checkout
from pixpod_bench.compare import compared_table, compared_verdicts
from pixpod_bench.emulator import report
from pixpod_bench.emulator.chaos import run_chaos
from pixpod_bench.emulator.comparison import Extent
from pixpod_bench.emulator.comparison import compare as compare_emulators
from pixpod_bench.emulator.throughput import measure_cell, measure_loads
from pixpod_bench.emulator.verdict import ChaosSettings
from pixpod_bench.report import verdict_table


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


def compare(given: argparse.Namespace) -> int:
    run = report.describe_run()
    extent = Extent(
        num_rounds=given.rounds,
        chaos_jobs=given.jobs,
        load_seconds=given.load_seconds,
        idle_seconds=given.idle_seconds,
    )
    with tqdm(total=2 * given.pairs, unit="run") as bar:
        found = compare_emulators(given.base, extent, given.pairs, bar.update)
    verdicts = compared_verdicts(found)
    sys.stdout.write(compared_table(found) + verdict_table("not worse than the base", verdicts))
    results = {"base": str(given.base), "compared": [asdict(each) for each in found]}
    sys.stdout.write(report.document("emulator-compare", run, results))
    return 1 if any(verdict.is_met is False for verdict in verdicts) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/emulator_bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="chaos | throughput | compare")
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
    compared = benchmarks.add_parser("compare", help="ratios to the emulator of another checkout")
    compared.set_defaults(work=compare)
    add = compared.add_argument
    add("--base", type=find_checkout, metavar="DIR", required=True, help="the other checkout")
    add("--pairs", type=int, default=30, metavar="N", help="of runs, one a side; default 30")
    add("--jobs", type=int, default=200, metavar="N", help="of chaos; default 200")
    add("--rounds", type=int, default=10, metavar="N", help="jobs for each slot; default 10")
    add("--load-seconds", type=float, default=5.0, metavar="S", help="of each load; default 5")
    add("--idle-seconds", type=float, default=10.0, metavar="S", help="without a job; default 10")
    return parser


def _bar(num_jobs: int) -> "tqdm[NoReturn]":
    return tqdm(total=num_jobs, unit="job", mininterval=1.0)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
