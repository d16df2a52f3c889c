"""Measure the cold start of a worker.

boots    `handler.py` with the tiny models until it takes jobs, against importing torch and
         diffusers; with each model until it is ready, against imports and a plain read of the same
         files at the same time
images   a process until its first image, against one that follows diffusers' documentation
loaders  the loader alone, after imports: pixpod's, stock from_pretrained, a plain read

Each run is a process of its own; compared runs alternate. Random weights are made in --cache-dir
the first time. Loaders run with the page cache of their files warm and dropped, whole processes
with that of the machine dropped, which needs root on Linux: without root, only warm.

With --base DIR, only the boots of another checkout and of this one are measured, with the tiny
models, in alternating pairs. Prints tables and one line of JSON, and writes cold.json, cold.txt
and cold.svg into --out.

Exits 1 if a model could not be measured, or if the interval of a ratio to the base reaches above
1.05.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pixpod.families import Precision
from pixpod_bench.base_checkout import find_checkout
from pixpod_bench.chart import OTHERS, OURS, Bar, Panel, save_panels
from pixpod_bench.cold.boots import TAKING_JOBS, boot_to_image, boot_worker
from pixpod_bench.cold.case import Case
from pixpod_bench.cold.processes import (
    PageCache,
    can_drop_everything,
    run_probe,
    run_whole_probe,
)
from pixpod_bench.cold.runs import Before, Run, Sample, Target, Timing, measure
from pixpod_bench.compare import Compared, compared_table, compared_verdicts
from pixpod_bench.figures import Ratio, Verdict
from pixpod_bench.machine import ROOT, Deadline, describe_machine
from pixpod_bench.report import (
    Columns,
    command_line,
    listing,
    new_parser,
    or_dash,
    publish,
    table,
    verdict_document,
    verdict_table,
    write_json,
)

PARTS = ("boots", "images", "loaders")
MODELS = {"cpu": ("flux-dev:4", "flux-dev:12"), "cuda": ("flux-dev", "sdxl")}
IMAGES_ON_CPU = ("flux-tiny", "sdxl-tiny")
"""Models whose images are measured on a CPU, which takes minutes for an image of the others."""

WORKER = "handler.py to ready"
BESIDE = "imports and plain read, side by side"
CLASSES = "torch and the classes of diffusers"
OURS_IMAGE, STOCK_IMAGE = "handler.py", "stock diffusers"
PLAIN_READ = "plain read"
TREE, BASE = "this checkout", "base"
TINY_MODELS = "tiny models"

CALL: Mapping[str, object] = {
    "prompt": "a red circle on a blue background",
    "num_inference_steps": 4,
}

TARGETS = (
    Target("plain read / our loader", PLAIN_READ, "ours", 0.85, at_least=True),
    Target("from_pretrained / our loader", "from_pretrained", "ours", 2.0, at_least=True),
    Target("worker to ready / imports and read", WORKER, BESIDE, 1.15),
    Target("worker to taking jobs / imports", f"{WORKER}, {TAKING_JOBS}", CLASSES, 1.2),
    Target(
        "stock / our first image",
        f"{STOCK_IMAGE}, first image",
        f"{OURS_IMAGE}, first image",
        1.0,
        at_least=True,
    ),
)
"""Targets for ratios of two times."""


class ColdBench:
    """The parts, one after the other; the file is written after each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.timings: dict[str, list[Timing]] = {}
        self.missing: list[str] = []
        self._options = options
        self._machine = describe_machine(options.device)
        self._deadline = Deadline(minutes=options.minutes)

    @property
    def is_complete(self) -> bool:
        measured = {timing.case for part in self.timings.values() for timing in part}
        wanted = {TINY_MODELS} if self._options.base else {each.title for each in self._cases}
        return measured >= wanted

    def run(self) -> None:
        options = self._options
        self._cases: list[Case] = []
        if options.base:
            roots = {BASE: options.base, TREE: ROOT}
            runs: dict[str, Run] = {name: partial(_boot_tiny, root) for name, root in roots.items()}
            self._measure("boots", TINY_MODELS, (), runs, options.pairs)
            return
        parts = options.only or PARTS
        if "boots" in parts and options.device == "cpu":
            runs = {WORKER: partial(_boot_tiny, ROOT), CLASSES: partial(run_whole_probe, _IMPORTS)}
            self._measure("boots", TINY_MODELS, (), runs, options.repeats)
        for name in options.models or MODELS[options.device]:
            self._cases.append(Case.bake(name, options.cache_dir, options.device))
        subjects = {"boots": _boots, "images": _images, "loaders": _loaders}
        for part in parts:
            for case in self._cases:
                if part != "images" or case.device == "cuda" or case.model in IMAGES_ON_CPU:
                    self._measure(
                        part, case.title, case.paths(), subjects[part](case), options.repeats
                    )

    def compared(self) -> list[Compared]:
        """Return ratios in which more than 1 is worse; none without a base."""
        return [
            Compared(what=f"boot to {what}", subject=subject, ratio=ratio)
            for what, mark in (("ready", ""), (TAKING_JOBS, f", {TAKING_JOBS}"))
            for subject, ratio in self._ratios(Target("", TREE + mark, BASE + mark, 1.0))
        ]

    def verdicts(self) -> list[Verdict]:
        return [
            *(verdict for target in TARGETS for verdict in target.judge(self._all())),
            *compared_verdicts(self.compared()),
        ]

    def document(self) -> dict[str, object]:
        return {
            "benchmark": "cold",
            "command": command_line("cold_bench"),
            "machine": self._machine,
            "compared": [asdict(each) for each in self.compared()],
            **{part: [_document(each) for each in found] for part, found in self.timings.items()},
            "not_here": self.missing,
            "ratios": [
                {"target": target.title, "subject": subject, **asdict(ratio)}
                for target in TARGETS
                for subject, ratio in self._ratios(target)
            ],
            "targets": [verdict_document(verdict) for verdict in self.verdicts()],
        }

    def tables(self) -> str:
        return "".join(
            (
                compared_table(self.compared()),
                *(
                    table(part.capitalize(), _TIMING, [(each.name, each) for each in found], 2)
                    for part, found in self.timings.items()
                ),
                listing("Not here", self.missing),
                verdict_table("Targets", self.verdicts()),
            )
        )

    def panels(self) -> list[Panel]:
        return [
            Panel(
                title=f"{part.capitalize()}: {case}, page cache {state}",
                unit="seconds, median",
                bars=[
                    Bar(each.name, each.median_s, OURS if _is_ours(each.name) else OTHERS)
                    for each in found
                    if (each.case, each.state) == (case, state)
                ],
            )
            for part, found in self.timings.items()
            for case, state in dict.fromkeys((each.case, each.state) for each in found)
        ]

    def _all(self) -> list[Timing]:
        return [timing for part in self.timings.values() for timing in part]

    def _ratios(self, target: Target) -> list[tuple[str, Ratio]]:
        return target.ratios(self._all())

    def _measure(
        self, part: str, title: str, paths: Sequence[Path], runs: Mapping[str, Run], repeats: int
    ) -> None:
        """Drop the machine's page cache; for loaders, only that of the files."""
        everything = part != "loaders"
        can_drop = not self._options.warm_only and (can_drop_everything() or not everything)
        states = [PageCache.WARM, PageCache.DROPPED] if can_drop else [PageCache.WARM]
        with tqdm(total=repeats * len(states) * len(runs), desc=title, unit="run") as bar:
            timings, missing = measure(
                title,
                runs,
                repeats,
                states=states,
                prepare=lambda state: PageCache(state).prepare(paths, everything=everything),
                on_run=bar.update,
                may_go_on=self._deadline.allows,
            )
        self.timings.setdefault(part, []).extend(timings)
        self.missing += [f"{title}: {name}: {reason}" for name, reason in missing.items()]
        write_json(self._options.out, "cold", self.document())


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    bench = ColdBench(options)
    bench.run()
    publish(options.out, "cold", bench.document(), bench.tables())
    save_panels(bench.panels(), options.out / "cold.svg")
    is_worse = any(verdict.is_met is False for verdict in compared_verdicts(bench.compared()))
    return 1 if is_worse or not bench.is_complete else 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("cold_bench", __doc__)
    add = parser.add_argument
    add("--only", action="append", choices=PARTS, help="may be repeated")
    add("--device", choices=tuple(MODELS), default="cpu")
    models = "flux-dev, sdxl, or fewer blocks: flux-dev:4 has 4 GB; flux-tiny rehearses"
    add("--models", nargs="+", metavar="NAME[:GB]", help=models)
    add("--base", type=find_checkout, metavar="DIR", help="a checkout to compare boots with")
    add("--pairs", type=int, default=30, metavar="N", help="with --base; default: 30")
    add("--repeats", type=int, default=5, metavar="N", help="default: 5")
    add("--minutes", type=float, metavar="N", help="begin no run after N minutes")
    add("--warm-only", action="store_true", help="leave the machine's page cache alone")
    cache_dir = Path(tempfile.gettempdir()) / "pixpod-cold-bench"
    kept = "keeps random weights; default: pixpod-cold-bench in the temporary directory"
    add("--cache-dir", type=Path, metavar="DIR", default=cache_dir, help=kept)
    return parser


# --- subjects -------------------------------------------------------------------------------------

_IMPORTS = {"probe": "import_classes"}


def _is_ours(name: str) -> bool:
    return name.startswith((WORKER, OURS_IMAGE, TREE, "ours"))


def _boot_tiny(root: Path, before: Before) -> Sample:
    """Boot a checkout's worker with the tiny models that it ships, as the platform does."""
    environ = {"PIXPOD_WEIGHTS_DIR": str(root / "model_cache"), "PIXPOD_DEVICE": "cpu"}
    return boot_worker(environ, before, root=root)


def _boots(case: Case) -> dict[str, Run]:
    """Return runs of whole processes until ready, and of the imports and reads that each needs."""
    paths = [str(path) for path in case.paths()]
    order = {"probe": "import_and_read", "paths": paths, "pipeline": case.pipeline}
    return {
        WORKER: lambda before: boot_worker(case.environ(), before, size_bytes=case.size_bytes()),
        BESIDE: lambda before: run_whole_probe(order, before),
    }


def _images(case: Case) -> dict[str, Run]:
    """Return runs of whole processes up to an image of the model's default size."""
    defaults, weights = case.spec.defaults, case.weights()
    precision = case.spec.precision.get(case.device, Precision.BFLOAT16)
    is_float8 = Precision.FLOAT8_DYNAMIC in (weights.precision, precision)
    order = {
        "probe": "stock_image",
        "pipeline": case.pipeline,
        "folder": str(weights.folder),
        "dtype": Precision.BFLOAT16 if is_float8 else precision,
        "device": case.device,
        "call": {"width": defaults.width, "height": defaults.height, **CALL},
    }
    return {
        OURS_IMAGE: lambda before: boot_to_image(case, CALL, before),
        STOCK_IMAGE: lambda before: run_whole_probe(order, before),
    }


def _loaders(case: Case) -> dict[str, Run]:
    """Return runs of loaders alone, after their imports."""
    read = {"probe": "read", "paths": [str(path) for path in case.paths()]}
    return {
        PLAIN_READ: partial(run_probe, read),
        **{
            name: partial(run_probe, {"probe": "load", "case": case.as_json(), "loader": name})
            for name in ("ours", "from_pretrained")
        },
    }


# --- tables ---------------------------------------------------------------------------------------

_TIMING: Columns[Timing] = (
    ("case", lambda each: each.case),
    ("page cache", lambda each: each.state),
    ("median s", lambda each: f"{each.median_s:.2f}"),
    ("spread", lambda each: f"{each.spread_percent:.0f} %"),
    ("GB/s", lambda each: or_dash(each.gigabytes_per_s, lambda rate: f"{rate:.2f}")),
)


def _document(timing: Timing) -> dict[str, object]:
    return {
        **asdict(timing),
        "median_s": round(timing.median_s, 4),
        "spread_percent": round(timing.spread_percent, 1),
        "gigabytes_per_s": timing.gigabytes_per_s and round(timing.gigabytes_per_s, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
