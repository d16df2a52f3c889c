"""A request in a device's queue, from its arrival to its result. Knows no thread and no order."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from pixpod.engine.base import OnStep, StepListener
from pixpod.engine.scheduling.batching import (
    BatchItem,
    ItemResult,
    QueuedRequest,
    is_isolated,
)
from pixpod.errors import WorkerError
from pixpod.job import Generation, GenerationRequest, ImageResult, ModelIdentity, RawImage
from pixpod.methods import batch_key_of
from pixpod.timeline import Timeline


class ExecutableModel(Protocol):
    """A model as the queue sees it."""

    @property
    def identity(self) -> ModelIdentity: ...

    def num_calls(self, request: GenerationRequest) -> int:
        """Return the denoiser calls of one image."""
        ...

    def max_batch_size(self, request: GenerationRequest) -> int:
        """Return the largest batch of such requests that the device takes."""
        ...

    def execute(
        self, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        """Return the outcome of each item, in their order; called by the device's thread.

        Raises a WorkerError that applies to all of them, and what `on_step` raises.
        """
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class QueueEntry:
    """A request, the images that were made for it so far, and the future that its caller has.

    `warms` names the model or stack that a warm-up is of, and is None for other requests.
    """

    request_id: int
    model: ExecutableModel
    request: GenerationRequest
    cancel: threading.Event
    on_step: StepListener | None
    warms: str | None
    waits_since: float
    answer: Future[Generation] = field(default_factory=Future)
    images: list[ImageResult] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    device_ms: float = 0.0
    warnings: list[str] = field(default_factory=list)
    controls: tuple[RawImage, ...] = ()

    @property
    def is_warmup(self) -> bool:
        return self.warms is not None

    @property
    def num_left(self) -> int:
        return len(self.request.seeds) - len(self.images)

    def item(self, num_images: int) -> BatchItem:
        begin = len(self.images)
        seeds = self.request.seeds[begin : begin + num_images]
        return BatchItem(request=self.request, seeds=seeds, warms=self.warms)

    def queued(self) -> QueuedRequest:
        return QueuedRequest(
            request_id=self.request_id,
            key=batch_key_of(self.request),
            num_images=self.num_left,
            is_isolated=is_isolated(self.request),
        )

    def report_step(self, step: int, num_images: int) -> None:
        """Report the calls of all its images together, so that progress only advances."""
        if self.on_step:
            num_calls = self.model.num_calls(self.request)
            done = len(self.images) * num_calls + step * num_images
            self.on_step(done // len(self.request.seeds), num_calls)

    def add(self, result: ItemResult) -> None:
        self.images += result.images
        for phase, milliseconds in result.timings_ms.items():
            self.timeline.add(phase, milliseconds)
        self.device_ms += result.device_ms
        self.warnings += result.warnings
        self.controls = result.controls

    def generation(self) -> Generation:
        return Generation(
            images=tuple(self.images),
            model=self.model.identity,
            timings_ms=self.timeline.milliseconds(),
            device_ms=self.device_ms,
            num_calls=self.model.num_calls(self.request),
            warnings=tuple(dict.fromkeys(self.warnings)),
            controls=self.controls,
        )


QueueBatch = list[tuple[QueueEntry, int]]
"""Requests, and the number of images that each has in the batch."""
