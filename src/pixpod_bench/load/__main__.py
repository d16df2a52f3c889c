"""Measure the share of a warm worker's time that goes into images, with tiny models on a CPU.

overhead  pixpod's handler against the bare pipeline, in one process
gain      jobs of one size at once, with batching and without
mixed     mixed jobs through the emulator and the real SDK, against a plain worker

With --base DIR, another checkout is measured in the same run, in alternating pairs: overhead and
gain, as ratios of this checkout to that one with the 95 % interval of the median. Prints tables
and one line of JSON, and writes load.json and load.txt into --out.

Exits 1 if the interval of a ratio to the base reaches above 1.05.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import NoReturn, TypeVar

from tqdm import tqdm

from pixpod_bench.base_checkout import find_checkout
from pixpod_bench.compare import Compared, compared_table, compared_verdicts
from pixpod_bench.figures import Verdict
from pixpod_bench.load.gain import LEAST_GAIN, Gain, measure_gain
from pixpod_bench.load.jobs import MODELS
from pixpod_bench.load.mixed import Mixed, SideFigures, measure_mixed
from pixpod_bench.load.overhead import LIMIT_MS, Overhead, measure_overhead
from pixpod_bench.load.sides import RunningSide, running_side
from pixpod_bench.machine import ROOT, describe_machine
from pixpod_bench.report import (
    Columns,
    command_line,
    new_parser,
    publish,
    table,
    verdict_document,
    verdict_table,
    write_json,
)

Figures = TypeVar("Figures", Overhead, Gain)

TREE, BASE = "this checkout", "base"
CONCURRENCY = 9
"""Jobs that a worker of the tiny models takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Numbers of jobs and rounds to run."""

    burst_jobs: int = 16
    mixed_jobs: int = 240
    mixed_rounds: int = 8


QUICK = Extent(burst_jobs=4, mixed_jobs=6, mixed_rounds=1)
"""The extent of a rehearsal, whose figures mean nothing."""


class LoadBench:
    """The parts, one after the other; the file is written after each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.overheads: list[Overhead] = []
        self.gains: list[Gain] = []
        self.mixed: Mixed | None = None
        self._options = options
        self._machine = describe_machine()
        self._extent = QUICK if options.quick else Extent()
        self._stack = ExitStack()
        self._sides: dict[str, RunningSide] = {}

    def run(self) -> None:
        parts: dict[str, Callable[[], None]] = {
            "overhead": self._run_overhead,
            "gain": self._run_gain,
            "mixed": self._run_mixed,
        }
        with self._stack:
            for part in self._options.only or parts:
                parts[part]()
                write_json(self._options.out, "load", self.document())

    def compared(self) -> list[Compared]:
        """Return ratios in which more than 1 is worse; none without a base."""
        found = []
        for base, tree in _pairs(self.overheads):
            handler = ([sample.handler_ms for sample in each.samples] for each in (tree, base))
            found.append(Compared.of("time of the handler", tree.model, *handler))
            beside = ([sample.beside_stages_ms for sample in each.samples] for each in (tree, base))
            found.append(Compared.of("beside the model's stages", tree.model, *beside))
        for old, new in _pairs(self.gains):
            gains = ([sample.gain for sample in each.samples] for each in (old, new))
            found.append(Compared.of("batching gain, base / this", new.model, *gains))
            seconds = ([sample.on_s for sample in each.samples] for each in (new, old))
            found.append(Compared.of("time of a batched burst", new.model, *seconds))
        return found

    def verdicts(self) -> list[Verdict]:
        found = [
            Verdict(
                target="added beside encoding",
                subject=each.model,
                value=each.beside_encoding_ms,
                limit=LIMIT_MS,
                at_least=False,
                unit="ms",
            )
            for each in self.overheads
            if each.side == TREE
        ]
        found += [
            Verdict(
                target="batching gain",
                subject=each.model,
                value=each.ratio.median,
                limit=LEAST_GAIN,
                at_least=True,
            )
            for each in self.gains
            if each.side == TREE
        ]
        return found + compared_verdicts(self.compared())

    def tables(self) -> str:
        mixed = self.mixed
        return "".join(
            (
                compared_table(self.compared()),
                table("Overhead", _OVERHEAD, [(each.model, each) for each in self.overheads], 1),
                table("Batching", _GAIN, [(each.model, each) for each in self.gains], 1),
                table("Mixed jobs", (("ratio", str),), mixed.ratios.items()) if mixed else "",
                table("", _MIXED, mixed.sides.items()) if mixed else "",
                verdict_table("Targets", self.verdicts()),
            )
        )

    def document(self) -> dict[str, object]:
        return {
            "benchmark": "load",
            "command": command_line("load_bench"),
            "machine": self._machine,
            "is_rehearsal": self._options.quick,
            "threads": self._options.threads,
            "pairs": self._options.pairs,
            "compared": [asdict(each) for each in self.compared()],
            "overhead": [asdict(each) for each in self.overheads],
            "gain": [asdict(each) for each in self.gains],
            "mixed": self.mixed and asdict(self.mixed),
            "targets": [verdict_document(verdict) for verdict in self.verdicts()],
        }

    # --- parts --------------------------------------------------------------------------------

    def _run_overhead(self) -> None:
        sides, pairs = self._start_sides(), self._options.pairs
        with _bar("overhead", pairs * len(self._options.models) * len(sides)) as bar:
            for model in self._options.models:
                self.overheads += measure_overhead(sides, model, pairs, bar.update)

    def _run_gain(self) -> None:
        sides, pairs = self._start_sides(), self._options.pairs
        with _bar("gain", pairs * len(self._options.models) * len(sides)) as bar:
            for model in self._options.models:
                num_jobs = self._extent.burst_jobs
                self.gains += measure_gain(sides, model, num_jobs, pairs, bar.update)

    def _run_mixed(self) -> None:
        extent = self._extent
        with _bar("mixed", 3 * extent.mixed_rounds) as bar:
            self.mixed = measure_mixed(
                extent.mixed_jobs, extent.mixed_rounds, CONCURRENCY, bar.update
            )

    def _start_sides(self) -> dict[str, RunningSide]:
        """Start the sides once; a side without an order does nothing."""
        roots = {BASE: self._options.base} if self._options.base else {}
        models = self._options.models
        for name, root in {**roots, TREE: ROOT}.items():
            if name not in self._sides:
                self._sides[name] = self._stack.enter_context(running_side(root, models))
        return self._sides


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # the sides and the workers inherit it; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    bench = LoadBench(options)
    bench.run()
    publish(options.out, "load", bench.document(), bench.tables())
    is_worse = any(verdict.is_met is False for verdict in compared_verdicts(bench.compared()))
    return 1 if is_worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("load_bench", __doc__)
    add = parser.add_argument
    add("--only", action="append", choices=("overhead", "gain", "mixed"), help="may be repeated")
    add("--base", type=find_checkout, metavar="DIR", help="a checkout to compare with")
    add("--pairs", type=int, default=30, metavar="N", help="of overhead and gain; default: 30")
    add("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help="default: all")
    add("--threads", type=int, default=1, metavar="N", help="torch's threads; default: 1")
    add("--quick", action="store_true", help="a rehearsal: says nothing about speed")
    return parser


_OVERHEAD: Columns[Overhead] = (
    ("side", lambda each: each.side),
    ("handler / bare", lambda each: str(each.ratio)),
    ("added ms", lambda each: f"{each.added_ms:.1f}"),
    ("beside encoding ms", lambda each: f"{each.beside_encoding_ms:.1f}"),
    ("beside stages ms", lambda each: f"{each.beside_stages_ms:.1f}"),
    ("bare ms", lambda each: f"{each.bare_ms:.1f}"),
    ("handler ms", lambda each: f"{each.handler_ms:.1f}"),
    ("levels apart", lambda each: str(each.levels_apart)),
)

_GAIN: Columns[Gain] = (
    ("side", lambda each: each.side),
    ("on / off", lambda each: str(each.ratio)),
    ("images/s off", lambda each: f"{each.off_images_per_s:.1f}"),
    ("on", lambda each: f"{each.on_images_per_s:.1f}"),
    ("levels apart", lambda each: str(each.levels_apart)),
)

_MIXED: Columns[SideFigures] = (
    ("jobs", lambda each: str(each.jobs)),
    ("images/s", lambda each: f"{each.images_per_s:.2f}"),
    ("p50 s", lambda each: f"{each.latency_p50_s:.2f}"),
    ("p95 s", lambda each: f"{each.latency_p95_s:.2f}"),
    ("levels apart", lambda each: str(each.levels_apart)),
)


def _pairs(found: Sequence[Figures]) -> list[tuple[Figures, Figures]]:
    """Return pairs of the figures of the base and of this checkout, by model."""
    base = {each.model: each for each in found if each.side == BASE}
    return [(base[each.model], each) for each in found if each.side == TREE and each.model in base]


def _bar(part: str, total: int) -> "tqdm[NoReturn]":
    return tqdm(total=total, desc=part, unit="run", mininterval=1.0)


if __name__ == "__main__":
    sys.exit(main())
