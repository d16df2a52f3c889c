"""The protocol of stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.conditions import Condition
from pixpod.engine.execution.oom_fallbacks import DoesNotFit, Fallback, run_within_memory
from pixpod.engine.model import Component, Pipeline
from pixpod.errors import OutOfMemory
from pixpod.job import GenerationRequest
from pixpod.methods import StageName

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """Resources of a running stage. `pipe` can use the components of the stage's plan only.

    `conditions` are all that the runner has.
    """

    name: StageName
    pipe: Pipeline
    pipe_with: Callable[[Mapping[str, Component]], Pipeline]
    conditions: Sequence[Condition]
    free_cache: Callable[[], bool]
    offload_others: Callable[[], bool]

    def pipe_for(self, batch: Batch, requests: Sequence[GenerationRequest]) -> Pipeline:
        """Return the pipeline for these rows: with the components that conditions put in place.

        May raise torch.OutOfMemoryError.
        """
        replaced = self.put_in_place(batch, self.name, requests)
        for condition in self.conditions:
            for component in replaced.values():
                batch.warnings += condition.warnings(component)
        return self.pipe_with(replaced) if replaced else self.pipe

    def put_in_place(
        self, batch: Batch, stage: StageName, requests: Sequence[GenerationRequest]
    ) -> dict[str, Component]:
        """Return what takes the place of the model's components while a stage runs these rows.

        Each condition builds on what those before it have put in place. May raise
        torch.OutOfMemoryError.
        """
        model = batch.model
        replaced: dict[str, Component] = {}
        for condition in self.conditions:
            if found := condition.components(model, stage, requests):
                replaced |= found
                model = model.with_components({**model.components, **found})
        return replaced

    def run_within_memory(
        self,
        batch: Batch,
        subject: str,
        chunks: Sequence[Sequence[T]],
        attempt: Callable[[Sequence[T]], None],
        *fallbacks: Fallback,
    ) -> None:
        """Process chunks, with fallbacks for a device that runs out of memory.

        The stage's own `fallbacks` come after the first, which costs nothing. `attempt` may raise
        torch.OutOfMemoryError. Raises OutOfMemory.
        """

        def fits(chunk: Sequence[T]) -> bool:
            try:
                attempt(chunk)
            except torch.OutOfMemoryError:
                return False  # from here on nothing refers to what the attempt has made
            return True

        first = (Fallback(apply=self.free_cache), *fallbacks)
        last = (Fallback(apply=self.offload_others),)
        try:
            batch.warnings += run_within_memory(chunks, fits, first=first, last=last)
        except DoesNotFit as exc:
            name, device = batch.model.spec.name, batch.model.device
            raise OutOfMemory(f"{name}: no memory for {subject} on {device}") from exc


class Stage(Protocol):
    """A part of making an image, on components of its own."""

    def prepare(self, batch: Batch) -> bool:
        """Do what needs no component; false if nothing is left for `run`."""
        ...

    def run(self, batch: Batch, context: StageContext) -> None:
        """Fill the batch; a single item or row may fail alone.

        Raises OutOfMemory if the device cannot hold even one row, and what `batch.on_step` raises.
        """
        ...
