"""Runs slices: one model on the device at a time; a failed scenario does not stop the others."""

import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from pixpod_bench.gpu.engine import measure_load, measure_memory
from pixpod_bench.gpu.measure import Subject, measure_images
from pixpod_bench.gpu.results import Failure, Journal, Result
from pixpod_bench.gpu.scenarios import (
    AnyScenario,
    MemoryScenario,
    Scenario,
    Served,
    StackScenario,
    Variant,
)
from pixpod_bench.gpu.stacks import measure_stack
from pixpod_bench.gpu.subjects import build_subject
from pixpod_bench.gpu.workload import Deployment
from pixpod_bench.machine import Deadline
from pixpod_bench.random_weights import bake

log = logging.getLogger(__name__)


class DeviceLost(Exception):
    """The device no longer computes in this process; a later call can continue."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """Runs scenarios. `state` keeps baked random weights and compiled packages between calls.

    `left_out` collects the scenarios for which there was no time.
    """

    device: torch.device
    warmups: int
    repeats: int
    deadline: Deadline
    journal: Journal
    state: Path
    left_out: list[str] = field(default_factory=list)
    _variant: Variant | None = None
    _subject: Subject | None = None
    _build_ms: float = 0.0

    def run(self, name: str, scenarios: Sequence[AnyScenario]) -> None:
        """Measure the scenarios that the journal does not have. Raises DeviceLost."""
        missing = [each for each in scenarios if not self.journal.has(name, each.name)]
        is_slow = self.device.type == "cuda"  # a rehearsal on a CPU is quick
        with tqdm(missing, desc=name, unit="scenario", file=sys.stderr) as bar:
            for scenario in bar:
                bar.set_postfix_str(scenario.name)
                if not self.deadline.allows(scenario.expected_s * is_slow):
                    self.left_out.append(f"{name}: {scenario.name}")
                elif self.journal.begin(name, scenario.name):
                    result = self._measure(scenario)
                    self.journal.add(name, scenario.name, result)
                    if isinstance(result, Failure):
                        self._check_device(scenario, result.reason)
                        self._drop_subject()
        self._drop_subject()

    def _measure(self, scenario: AnyScenario) -> Result:
        """Measure a scenario; a failure ends only that scenario, because GPU time is costly."""
        # a rehearsal on a CPU takes the same path, but no compiler's minutes
        stance = "default" if self.device.type == "cuda" else "force_eager"
        try:
            with torch.compiler.set_stance(stance):
                return self._run_scenario(scenario)
        except Exception as exc:
            log.exception("scenario failed: %s", scenario.name)
            return Failure(reason=f"{type(exc).__name__}: {exc}".splitlines()[0][:300])

    def _run_scenario(self, scenario: AnyScenario) -> Result:
        if isinstance(scenario, Scenario):
            subject = self._subject_of(scenario.variant)
            return measure_images(
                subject,
                scenario,
                warmups=self.warmups,
                repeats=self.repeats,
                build_ms=self._build_ms,
            )
        if isinstance(scenario, StackScenario):
            return measure_stack(
                self._subject_of(scenario.variant).model,
                scenario,
                self.state / "compiled",
                warmups=self.warmups,
                repeats=self.repeats,
            )
        deployment = self._deploy(scenario.served)
        if isinstance(scenario, MemoryScenario):
            return measure_memory(scenario, deployment)
        return measure_load(scenario, deployment)

    def _subject_of(self, variant: Variant) -> Subject:
        """Return the subject on the device if it is of this variant, else a new one."""
        if variant != self._variant or self._subject is None:
            self._drop_subject()
            started = time.perf_counter()
            self._subject = build_subject(variant, self.device, self.state / "compiled")
            self._build_ms = (time.perf_counter() - started) * 1e3
            self._variant = variant
        return self._subject

    def _deploy(self, served: Served) -> Deployment:
        """Bake the models once into a weights directory of their own."""
        self._drop_subject()
        folder = self.state / "weights" / "+".join(model for model, _ in served)
        for model, _ in served:
            bake(folder, model)
        return Deployment(
            weights_dir=folder,
            compiled_dir=self.state / "compiled",
            device=self.device.type,
            served=served,
        )

    def _drop_subject(self) -> None:
        self._variant = self._subject = None
        gc.collect()
        if self.device.type == "cuda":
            torch.compiler.reset()
            torch.cuda.empty_cache()

    def _check_device(self, scenario: AnyScenario, reason: str) -> None:
        """Raise DeviceLost if the device no longer computes, as after an illegal access."""
        try:
            torch.ones(1, device=self.device).add(1).item()
        except RuntimeError as exc:
            raise DeviceLost(
                f"the device was lost in {scenario.name!r} ({reason}): call again with --resume"
            ) from exc
