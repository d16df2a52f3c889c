"""How long a worker takes from nothing to ready, on this machine's CPU and disk.

Each run is a process of its own; what is compared runs in turns. Caches of random weights are made
in --cache-dir the first time (16 GB with the default sizes). Loaders are run with the page cache
of their files warm and dropped; whole processes with all of the machine's dropped, which needs
root on Linux: without it their warm runs alone are made. Prints tables and, last, one line of JSON,
and writes cold-bench.json and loaders.svg into --out.
"""

import argparse
import json
import logging
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from pixpod_bench.cold import report, subjects
from pixpod_bench.cold.caches import bake_flux_caches
from pixpod_bench.cold.case import Case
from pixpod_bench.cold.plain_read import PLANS, ReadPlan
from pixpod_bench.cold.processes import ROOT, PageCache, can_drop_everything
from pixpod_bench.cold.runs import Missing, Rounds, Run, Timing, Verdict, measure

log = logging.getLogger(__name__)

TRIES = 2
"""Of each way to read plainly, to choose one."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 if a target is missed and --assert-targets is given."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="scripts/cold_bench: %(message)s")
    machine = report.describe_machine()
    bench = ColdBench(options, machine)
    bench.run()
    verdicts = bench.verdicts()
    sys.stdout.write(report.format_missing(bench.missing) + report.format_verdicts(verdicts))
    sys.stdout.write("\n" + json.dumps(bench.document()) + "\n")
    return 1 if options.assert_targets and not all(verdict.is_met for verdict in verdicts) else 0


class ColdBench:
    """The parts one after the other; what is there after each is in the file already."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, object]) -> None:
        self.missing: list[Missing] = []
        self._options = options
        self._machine = machine
        self._timings: dict[str, list[Timing]] = {}
        self._plain_reads: dict[str, object] = {}
        self._chosen_plan: ReadPlan | None = None
        self._file_states = (PageCache.WARM,) if options.warm_only else tuple(PageCache)
        self._machine_states = self._file_states
        if not options.warm_only and not can_drop_everything():
            self._machine_states = (PageCache.WARM,)
            log.warning("whole processes: warm runs only; to drop the page cache needs root")

    def run(self) -> None:
        self._options.out.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[Sequence[Case]], None]] = {
            "loaders": self._run_loaders,
            "boots": self._run_boots,
            "jobs": self._run_jobs,
            "imports": self._run_imports,
        }
        chosen = self._options.only or tuple(parts)
        cases = []
        if {"loaders", "boots"} & {*chosen}:
            cases = bake_flux_caches(self._options.cache_dir, self._options.sizes_gb, "cpu")
        for part, run in parts.items():
            if part in chosen:
                run(cases)

    def verdicts(self) -> list[Verdict]:
        timings = [timing for part in self._timings.values() for timing in part]
        return [verdict for target in subjects.TARGETS for verdict in target.judge(timings)]

    def document(self) -> dict[str, object]:
        return report.document(
            "cold-start",
            shlex.join(["scripts/cold_bench", *sys.argv[1:]]),
            self._machine,
            {
                "repetitions": self._options.repetitions,
                "plain_read": self._plain_reads,
                **{
                    part: [report.timing_document(timing) for timing in timings]
                    for part, timings in self._timings.items()
                },
                "not_here": [[each.case, each.name, each.reason] for each in self.missing],
                "targets": [report.verdict_document(verdict) for verdict in self.verdicts()],
            },
        )

    # --- parts --------------------------------------------------------------------------------

    def _run_loaders(self, cases: Sequence[Case]) -> None:
        for number, case in enumerate(cases):
            names = subjects.MAIN_LOADERS + (subjects.OTHER_LOADERS if number == 0 else ())
            if self._options.loaders:
                names = tuple(name for name in names if name in self._options.loaders)
            runs = subjects.loaders(case, names, self._plan(cases[0]))
            self._measure("loaders", case, runs, everything=False)
        self._show("loaders", "Loader alone, after imports", subjects.PLAIN_READ)
        from pixpod_bench.cold.chart import draw_loaders

        draw_loaders(self._timings["loaders"], self._options.out / "loaders.svg")

    def _run_boots(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self._measure("boots", case, subjects.whole_processes(case, self._plan(cases[0])))
        self._show("boots", "Whole process, from exec to ready", subjects.BESIDE)

    def _run_jobs(self, cases: Sequence[Case]) -> None:
        self._measure("jobs", "tiny models", subjects.job_takes())
        self._show("jobs", "Whole process, to the first request for a job", subjects.CLASSES)

    def _run_imports(self, cases: Sequence[Case]) -> None:
        with subjects.imports() as runs:
            self._measure("imports", "imports", runs)
        self._show("imports", "Boot phases: imports, each in a process of its own", "torch")

    # --- what the parts have in common --------------------------------------------------------

    def _plan(self, case: Case) -> ReadPlan:
        """The way to read plainly that is quickest here in all states together, tried once before
        anything is compared.
        """
        if self._chosen_plan is None:
            named = {str(plan): plan for plan in PLANS}
            reads = subjects.plain_reads(case, named)
            timings = self._in_turns(case, reads, self._file_states, TRIES, everything=False)
            rates = {
                name: [t.gigabytes_per_s or 0.0 for t in timings if t.name == name]
                for name in named
            }
            best = max(named, key=lambda name: math.prod(rates[name]))
            self._plain_reads = {"chosen": best, "gigabytes_per_s": rates}
            self._chosen_plan = named[best]
        return self._chosen_plan

    def _measure(
        self, part: str, case: Case | str, runs: dict[str, Run], *, everything: bool = True
    ) -> None:
        """`everything`: whether the machine's page cache is dropped, or that of the files only."""
        states = self._machine_states if everything else self._file_states
        repetitions = self._options.repetitions
        timings = self._in_turns(case, runs, states, repetitions, everything=everything)
        self._timings.setdefault(part, []).extend(timings)
        path = self._options.out / "cold-bench.json"
        path.write_text(json.dumps(self.document()) + "\n", encoding="utf-8")

    def _in_turns(
        self,
        case: Case | str,
        runs: dict[str, Run],
        states: Sequence[PageCache],
        repetitions: int,
        *,
        everything: bool,
    ) -> list[Timing]:
        """`case` is what the runs read, or only a title for those that read little."""
        paths, title = ((), case) if isinstance(case, str) else (case.paths(), case.title)
        total = repetitions * len(states) * len(runs)
        with tqdm(total=total, desc=title, unit="run", mininterval=1.0) as bar:

            def show(name: str, state: str) -> None:
                bar.set_postfix_str(f"{name}, {state}", refresh=False)
                bar.update()

            rounds = Rounds(
                repetitions=repetitions,
                states=states,
                prepare=lambda state: PageCache(state).prepare(paths, everything=everything),
                on_run=show,
            )
            timings, missing = measure(title, runs, rounds)
        self.missing += missing
        return timings

    def _show(self, part: str, title: str, reference: str) -> None:
        sys.stdout.write(report.format_timings(title, self._timings[part], reference))
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/cold_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        type=_names("loaders", "boots", "jobs", "imports"),
        metavar="PART,PART",
        help="of loaders, boots, jobs, imports",
    )
    every = (*subjects.MAIN_LOADERS, *subjects.OTHER_LOADERS)
    parser.add_argument(
        "--loaders", type=_names(*every, separator=";"), metavar="NAME;NAME", help="; ".join(every)
    )
    parser.add_argument(
        "--sizes-gb",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=(4, 12),
        metavar="N,N",
        help="of the caches; 0 is the tiny model, a rehearsal (default: 4,12)",
    )
    parser.add_argument(
        "--warm-only", action="store_true", help="leave the machine's page cache alone"
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "pixpod-cold-bench",
        help="kept for the next time (default: pixpod-cold-bench in the temporary directory)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=ROOT / "build" / "cold_bench", help="results"
    )
    parser.add_argument(
        "--assert-targets", action="store_true", help="exit with 1 if a target is missed"
    )
    return parser


def _names(*accepted: str, separator: str = ",") -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(separator))
        unknown = {*names} - {*accepted}
        if unknown:
            raise argparse.ArgumentTypeError(f"{min(unknown)!r}: accepted are {accepted}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
