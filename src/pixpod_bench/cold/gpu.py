"""The cold start on a CUDA machine: full-size random weights, ours and stock diffusers in turns.

What matters most is measured first, since time on a card is lent: from exec to ready and to the
first image, then the loaders alone. What is there is written after each part.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixpod.timeline import Span
from pixpod_bench.boot_chart import draw_boot
from pixpod_bench.boot_report import make_boot_report
from pixpod_bench.cold import report, subjects
from pixpod_bench.cold.caches import bake_full
from pixpod_bench.cold.case import Case
from pixpod_bench.cold.chart import draw_loaders
from pixpod_bench.cold.plain_read import ReadPlan
from pixpod_bench.cold.processes import (
    PageCache,
    can_drop_everything,
    run_probe,
)
from pixpod_bench.cold.runs import Missing, NotHere, Rounds, Run, Timing, measure

log = logging.getLogger(__name__)

FULL_SIZE = ("flux-dev", "sdxl")
TINY = ("flux-tiny", "sdxl-tiny")

CALL: Mapping[str, object] = {"num_inference_steps": 4}
"""Of the first image, on both sides; its size is the model's default."""

LOADERS = (
    *(subjects.PLAIN_READ, "ours", "from_pretrained", "from_pretrained, device_map"),
    *("ours, 1 copying thread", "ours, 2 copying threads", "ours, 8 copying threads"),
    *("fastsafetensors", "runai-model-streamer", "instanttensor"),
    *("safetensors mmap", "safetensors pread", "ours, sizes only"),
)
"""The worker's own number of copying threads is `ours`. GDS is not asked for."""

READ_PLAN = ReadPlan(threads=8, block_bytes=8 * 2**20)


@dataclass(slots=True, kw_only=True)
class GpuColdBench:
    """`deadline` is a perf_counter after which no run is begun."""

    device: str
    models: Sequence[str]
    repetitions: int
    deadline: float | None
    out: Path
    cache_dir: Path | None
    command: str
    machine: dict[str, object]
    loaders: Sequence[str] = LOADERS
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    pinned_copy_gigabytes_per_s: float | None = None

    def run(self) -> int:
        """Exit status 1 if there is a model of which nothing could be measured."""
        self._measure_bus()
        with tempfile.TemporaryDirectory(prefix="pixpod-cold-") as folder:
            directory = self.cache_dir or Path(folder)
            cases = [
                bake_full(directory, model, self.device)
                for model in self.models
                if self._may_go_on()
            ]
            for case in cases:
                self._run_images(case)
            for case in cases:
                loaders = subjects.loaders(case, self.loaders, READ_PLAN)
                self._measure(f"{case.model} loaders", case, loaders, everything=False)
        self._draw()
        sys.stdout.write(self._tables() + json.dumps(self.document()) + "\n")
        drawn = {timing.case for timings in self.timings.values() for timing in timings}
        return 0 if drawn >= {*self.models} else 1

    def document(self) -> dict[str, object]:
        return report.document(
            "gpu-cold-start",
            self.command,
            self.machine,
            {
                "pinned_copy_gigabytes_per_s": self.pinned_copy_gigabytes_per_s,
                "first_image": dict(CALL),
                **{
                    part: [report.timing_document(timing) for timing in timings]
                    for part, timings in self.timings.items()
                },
                "not_here": [[each.case, each.name, each.reason] for each in self.missing],
            },
        )

    # --- parts --------------------------------------------------------------------------------

    def _measure_bus(self) -> None:
        if self.device != "cuda":
            return
        try:
            sample = run_probe({"probe": "pinned_copy"}, lambda: None)
        except NotHere as exc:
            self.missing.append(Missing(case="bus", name="pinned copy", reason=str(exc)))
            return
        assert sample.size_bytes
        self.pinned_copy_gigabytes_per_s = round(sample.size_bytes / sample.seconds / 1e9, 2)

    def _run_images(self, case: Case) -> None:
        runs = subjects.first_images(case, CALL)
        self._measure(f"{case.model} first image", case, runs, everything=True)

    # --- what the parts have in common --------------------------------------------------------

    def _measure(self, part: str, case: Case, runs: Mapping[str, Run], *, everything: bool) -> None:
        """`everything`: whether the machine's page cache is dropped, or that of the files only."""
        can_drop = self.device == "cuda" and (can_drop_everything() or not everything)
        paths = case.paths()
        rounds = Rounds(
            repetitions=self.repetitions,
            states=[PageCache.DROPPED, PageCache.WARM] if can_drop else [PageCache.WARM],
            prepare=lambda state: PageCache(state).prepare(paths, everything=everything),
            on_run=lambda name, state: log.info("%s: %s, page cache %s", part, name, state),
            may_go_on=self._may_go_on,
        )
        timings, missing = measure(case.title, runs, rounds)
        self.timings[part] = timings
        self.missing += missing
        path = self.out / "gpu-cold.json"
        path.write_text(json.dumps(self.document()) + "\n", encoding="utf-8")

    def _may_go_on(self) -> bool:
        return self.deadline is None or time.perf_counter() < self.deadline

    def _draw(self) -> None:
        """Charts of each model's boots and loaders."""
        for part, timings in self.timings.items():
            for timing in timings:
                if "spans" in timing.details:
                    spans = [Span(**span) for span in timing.details["spans"]]
                    name = f"boot-{timing.case}-{timing.state}.svg"
                    draw_boot(make_boot_report(spans), self.out / name)
            if part.endswith("loaders") and timings:
                draw_loaders(timings, self.out / f"{part.replace(' ', '-')}.svg")

    def _tables(self) -> str:
        tables = [
            report.format_timings(
                part, timings, subjects.PLAIN_READ if part.endswith("loaders") else subjects.STOCK
            )
            for part, timings in self.timings.items()
        ]
        bus = self.pinned_copy_gigabytes_per_s
        ceiling = f"\nPage-locked copy to the card: {bus} GB/s\n" if bus else ""
        return "".join([*tables, ceiling, report.format_missing(self.missing), "\n"])
