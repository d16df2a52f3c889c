"""Slices to results: builds what scenarios need, one thing on the device at a time, and lets none
of them take the others along.
"""

import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixpod.catalog import Catalog, Precision
from pixpod_bench import subjects
from pixpod_bench.cold.caches import bake
from pixpod_bench.load import measure_load
from pixpod_bench.measure import Pace, Subject, measure_drawing, measure_vae
from pixpod_bench.memory import measure_memory
from pixpod_bench.overlap import measure_overlap
from pixpod_bench.results import Failure, Journal, Result
from pixpod_bench.scenarios import (
    AnyScenario,
    LoadScenario,
    MemoryScenario,
    OverlapScenario,
    Scenario,
    Slice,
    VaeScenario,
    Variant,
)
from pixpod_bench.whole_engine import Home

log = logging.getLogger(__name__)


class DeviceLost(Exception):
    """The device computes nothing any more in this process; a later call can go on."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """`directory` is where weights directories are baked for what needs a whole engine,
    `compiled_dir` where `scripts/compile` may have put packages. `left_out` collects the scenarios
    for which there was no time.
    """

    catalog: Catalog
    device: torch.device
    pace: Pace
    journal: Journal
    directory: Path
    compiled_dir: Path
    left_out: list[str] = field(default_factory=list)
    _variant: Variant | None = None
    _subject: Subject | None = None
    _build_ms: float = 0.0

    def run(self, chosen: Slice) -> None:
        """Raises DeviceLost."""
        waiting = [each for each in chosen.scenarios if self._is_wanted(chosen, each)]
        with tqdm(waiting, desc=chosen.name, unit="scenario", file=sys.stderr) as bar:
            for scenario in bar:
                bar.set_postfix_str(scenario.name)
                if self.pace.is_over:
                    self.left_out.append(f"{chosen.name}: {scenario.name}")
                elif self.journal.begin(chosen.name, scenario.name):
                    result = self._result_of(scenario)
                    self.journal.add(chosen.name, scenario.name, result)
                    if isinstance(result, Failure):
                        self._check_device(scenario, result.reason)
                        self._drop_subject()
        self._drop_subject()

    def _is_wanted(self, chosen: Slice, scenario: AnyScenario) -> bool:
        return not self.journal.has(chosen.name, scenario.name)

    def _result_of(self, scenario: AnyScenario) -> Result:
        """A failure costs its own scenario only: time on a card is lent."""
        measure: Callable[[Any], Result] = self._measures()[type(scenario)]
        # a rehearsal on a CPU takes the same way, but no compiler's minutes
        stance = "default" if self.device.type == "cuda" else "force_eager"
        try:
            with torch.compiler.set_stance(stance):
                return measure(scenario)
        except Exception as exc:
            log.exception("scenario failed: %s", scenario.name)
            return Failure(reason=f"{type(exc).__name__}: {exc}".splitlines()[0][:300])

    def _measures(self) -> Mapping[type[AnyScenario], Callable[[Any], Result]]:
        """Any: each takes the scenarios of its own type."""
        return {
            Scenario: self._drawing,
            VaeScenario: self._vae,
            OverlapScenario: self._overlap,
            MemoryScenario: self._memory,
            LoadScenario: self._load,
        }

    def _drawing(self, scenario: Scenario) -> Result:
        subject = self._subject_of(scenario.variant)
        return measure_drawing(subject, scenario, self.pace, self._build_ms)

    def _overlap(self, scenario: OverlapScenario) -> Result:
        subject = self._subject_of(scenario.drawing.variant)
        return measure_overlap(scenario, subject.model, self.pace)

    def _subject_of(self, variant: Variant) -> Subject:
        """The one on the device, if it is of this variant, else a new one."""
        if variant != self._variant or self._subject is None:
            self._drop_subject()
            started = time.perf_counter()
            self._subject = subjects.build(variant, self.catalog, self.device, self.compiled_dir)
            self._build_ms = (time.perf_counter() - started) * 1e3
            self._variant = variant
        return self._subject

    def _vae(self, scenario: VaeScenario) -> Result:
        self._drop_subject()
        vae = subjects.build_vae(scenario, self.device)
        return measure_vae(scenario, vae, self.pace)

    def _memory(self, scenario: MemoryScenario) -> Result:
        return measure_memory(scenario, self._home(scenario.precisions))

    def _load(self, scenario: LoadScenario) -> Result:
        return measure_load(scenario, self._home(scenario.precisions))

    def _home(self, precisions: tuple[tuple[str, Precision], ...]) -> Home:
        """A weights directory with these models, made once, and where it is served."""
        self._drop_subject()
        folder = self.directory / "+".join(model for model, _ in precisions)
        for model, _ in precisions:
            bake(folder, model)
        return Home(weights_dir=folder, compiled_dir=self.compiled_dir, device=self.device)

    def _drop_subject(self) -> None:
        self._variant = self._subject = None
        gc.collect()
        if self.device.type == "cuda":
            torch.compiler.reset()
            torch.cuda.empty_cache()

    def _check_device(self, scenario: AnyScenario, reason: str) -> None:
        """After an illegal access nothing works in a process any more."""
        try:
            torch.ones(1, device=self.device).add(1).item()
        except RuntimeError as exc:
            raise DeviceLost(
                f"the device was lost in {scenario.name!r} ({reason}): call again with --resume"
            ) from exc
