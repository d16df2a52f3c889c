"""How much of a warm worker's time goes into images, on this machine's CPU and with tiny models.

Parts: overhead (handler beside the bare pipeline), same_size (batching alone), other_steps (what
it costs that jobs with other numbers of steps do not share a batch), mixed (200 jobs
through the emulator and the real SDK, beside a plain worker), memory (500 jobs through the engine)
and cost (replies beside the emulator's bill). What is compared runs in turns, in one run. Prints
tables and, last, one line of JSON; writes throughput-bench.json and throughput.svg into --out.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pixpod.logs import configure_logging
from pixpod.serving.concurrency import jobs_to_hold
from pixpod.settings import keep_hub_offline
from pixpod_bench.cold.report import describe_machine
from pixpod_bench.throughput import report
from pixpod_bench.throughput.mixed_plan import Plan
from pixpod_bench.throughput.report import Results
from pixpod_bench.throughput.workload import MODELS, load_spec

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much of each part is run."""

    models: tuple[str, ...]
    pairs: int
    same_size_jobs: int
    same_size_rounds: int
    other_steps_jobs: int
    mixed_jobs: int
    mixed_rounds: int
    mixed_warm_ups: int
    mixed_whole: bool
    memory_warm_up: int
    memory_jobs: int
    cost_jobs: int


WHOLE = Extent(
    models=MODELS,
    pairs=30,
    same_size_jobs=32,
    same_size_rounds=3,
    other_steps_jobs=100,
    mixed_jobs=200,
    mixed_rounds=4,
    mixed_warm_ups=9,
    mixed_whole=True,
    memory_warm_up=150,
    memory_jobs=500,
    cost_jobs=100,
)
QUICK = Extent(
    models=("sd15-tiny",),
    pairs=2,
    same_size_jobs=8,
    same_size_rounds=1,
    other_steps_jobs=6,
    mixed_jobs=3,
    mixed_rounds=1,
    mixed_warm_ups=3,
    mixed_whole=False,
    memory_warm_up=10,
    memory_jobs=20,
    cost_jobs=3,
)
"""A rehearsal: its figures mean nothing."""


class ThroughputBench:
    """The parts one after the other; what is there after each is in the file already."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, object]) -> None:
        self.results = Results()
        self._options = options
        self._machine = machine
        self._extent = QUICK if options.quick else WHOLE
        self._parts: dict[str, Callable[[], str]] = {
            "overhead": self._run_overhead,
            "same_size": self._run_same_size,
            "other_steps": self._run_other_steps,
            "mixed": self._run_mixed,
            "memory": self._run_memory,
            "cost": self._run_cost,
        }

    def run(self) -> None:
        self._options.out.mkdir(parents=True, exist_ok=True)
        for part in self._options.only or self._parts:
            table = self._parts[part]()
            sys.stdout.write(table)
            sys.stdout.flush()
            path = self._options.out / "throughput-bench.json"
            path.write_text(json.dumps(self.document()) + "\n", encoding="utf-8")
        from pixpod_bench.throughput.chart import draw

        draw(self.results, self._options.out / "throughput.svg")

    def document(self) -> dict[str, object]:
        return {
            "benchmark": "throughput",
            "command": shlex.join(["scripts/throughput_bench", *sys.argv[1:]]),
            "machine": self._machine,
            "is_rehearsal": self._options.quick,
            "threads": self._options.threads,
            "held": self._options.held,
            **self.results.document(),
        }

    # --- parts: each imports what it needs, torch for some of them ------------------------------

    def _run_overhead(self) -> str:
        from pixpod_bench.throughput.overhead import measure_overhead

        extent = self._extent
        with _bar("overhead", extent.pairs * len(extent.models), "pair") as bar:
            self.results.overheads = [
                measure_overhead(model, extent.pairs, bar.update) for model in extent.models
            ]
        return report.format_overheads(self.results.overheads)

    def _run_same_size(self) -> str:
        from pixpod_bench.throughput.same_size import measure_gain

        extent = self._extent
        num_runs = 2 * extent.same_size_rounds * len(extent.models)
        with _bar("same size", num_runs, "run") as bar:
            self.results.same_size = [
                measure_gain(model, extent.same_size_jobs, extent.same_size_rounds, bar.update)
                for model in extent.models
            ]
        return report.format_same_size(self.results.same_size)

    def _run_other_steps(self) -> str:
        from pixpod_bench.throughput.other_steps import measure_other_steps

        extent = self._extent
        with _bar("other steps", 2 * extent.same_size_rounds, "run") as bar:
            self.results.other_steps = measure_other_steps(
                extent.other_steps_jobs, self._options.held, extent.same_size_rounds, bar.update
            )
        return report.format_other_steps(self.results.other_steps)

    def _run_mixed(self) -> str:
        from pixpod_bench.throughput.mixed import measure_mixed

        extent = self._extent
        plan = Plan(
            jobs=extent.mixed_jobs,
            held=self._options.held,
            rounds=extent.mixed_rounds,
            warm_ups=extent.mixed_warm_ups,
            is_whole=extent.mixed_whole,
        )
        with _bar("mixed", plan.rounds * len(plan.sides()), "run") as bar:
            self.results.mixed = measure_mixed(plan, bar.update)
        mixed = self.results.mixed
        return report.format_mixed(mixed) + report.format_costs(mixed.costs)

    def _run_memory(self) -> str:
        from pixpod_bench.throughput.memory import measure_growth

        extent = self._extent
        with _bar("memory", 1, "run") as bar:
            self.results.growth = measure_growth(
                extent.memory_warm_up, extent.memory_jobs, bar.update
            )
        return report.format_growth(self.results.growth)

    def _run_cost(self) -> str:
        from pixpod_bench.throughput.cost import measure_cost

        with _bar("cost", 1, "run") as bar:
            self.results.cost = measure_cost(self._extent.cost_jobs, self._options.held, bar.update)
        return report.format_costs([self.results.cost])


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 if replies told more of the card than the platform billed."""
    options = _parser().parse_args(arguments)
    # workers that are started here inherit it; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    keep_hub_offline(os.environ)
    configure_logging("ERROR")
    bench = ThroughputBench(options, describe_machine())
    bench.run()
    sys.stdout.write(report.format_verdicts(bench.results.verdicts()))
    sys.stdout.write("\n" + json.dumps(bench.document()) + "\n")
    return 0 if all(each.is_covered for each in bench.results.comparisons) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/throughput_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = ("overhead", "same_size", "other_steps", "mixed", "memory", "cost")
    add = parser.add_argument
    add("--only", action="append", choices=parts, help="may be given more than once")
    add("--quick", action="store_true", help="a rehearsal; says nothing of speed")
    add("--threads", type=int, default=1, metavar="N", help="of torch, of each side; default 1")
    held = jobs_to_hold(load_spec(model) for model in MODELS)
    add(
        "--held",
        type=int,
        default=held,
        metavar="N",
        help=f"jobs that a worker holds beside the 1 of others; default {held}, our table's",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=ROOT / "build" / "throughput_bench",
        help="default build/throughput_bench",
    )
    return parser


def _bar(part: str, total: int, unit: str) -> "tqdm[NoReturn]":
    return tqdm(total=total, desc=part, unit=unit, mininterval=1.0)


if __name__ == "__main__":
    sys.exit(main())
