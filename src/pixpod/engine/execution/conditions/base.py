"""The base of conditions: everything that steers an image apart from its seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.model import Component, LoadedModel, Pipeline
from pixpod.job import AdapterUse, GenerationRequest, RawImage, RawMask
from pixpod.methods import StageName

AfterStep = Callable[[int, torch.Tensor], torch.Tensor]
"""Called with the index of a finished step and the latents after it, as the pipeline has them;
returns the latents for the next step.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that is ready to be queued, what was read for it, and the time that this took."""

    request: GenerationRequest
    adapters: tuple[AdapterUse, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)


class Condition(ABC):
    """Prepares a part of a request as tensors for the pipeline's call.

    `methods.batch_key` says what rows of a batch must share. `stage` computes the condition, and
    its plan names the components that `compute` may use. `used_by` is the stage whose call gets the
    arguments.
    """

    stage: StageName
    used_by = StageName.DENOISE

    def prepare(self, model: LoadedModel, prepared: Prepared) -> Prepared:
        """Read and check files that a request names, before it is queued, from any thread.

        Raises a WorkerError.
        """
        return prepared

    def request_of(self, request: GenerationRequest) -> GenerationRequest:
        """Return the part of a request that `find` and `compute` are for."""
        return request

    def components(
        self, model: LoadedModel, stage: StageName, requests: Sequence[GenerationRequest]
    ) -> Mapping[str, Component]:
        """Return components that take the place of the model's own while a stage runs these rows.

        `model` has those that other conditions have put in place before. They are ready for just
        these rows, in their order, until the next call. May raise torch.OutOfMemoryError.
        """
        return {}

    def warnings(self, component: Component) -> tuple[str, ...]:
        """Return messages for callers about a component of `components`."""
        return ()

    def release(self, spare_bytes: int | None) -> None:  # noqa: B027 - most keep nothing
        """End a batch, also one that has failed; keep no more device memory than is spare.

        None for a device without a limit.
        """

    def free(self) -> bool:
        """Free device memory that the running batch does not need; return False for nothing."""
        return False

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        """Return warnings for the caller; needs no component.

        Raises InvalidInput for this request, or another WorkerError for all that share its batch.
        """
        return []

    @abstractmethod
    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        """Return arguments that were computed before, on the model's device; None if unknown."""

    @abstractmethod
    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        """Compute the arguments of one request; a tensor's first dimension is 1."""

    def arrange(self, batch: Batch, pipe: Pipeline, arguments: Arguments) -> Arguments:
        """Return the arguments of the pipeline's call from those of all rows, which are joined."""
        return arguments

    def after_step(
        self, batch: Batch, pipe: Pipeline, rows: Sequence[Row], num_calls: int
    ) -> AfterStep | None:
        """Return what changes the latents of these rows after each step; None for nothing.

        `num_calls` are the denoiser calls from the first of these steps to the end of the schedule.
        """
        return None

    def finish(self, request: GenerationRequest, image: torch.Tensor) -> torch.Tensor:
        """Return a finished image, of (height, width, 3) in 8 bits, as the caller gets it."""
        return image


def to_levels(image: RawImage | RawMask) -> torch.Tensor:
    """Return 8-bit levels of (height, width, channels)."""
    return torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).view(
        image.height, image.width, -1
    )


def to_tensor(image: RawImage, device: torch.device) -> torch.Tensor:
    """Return (1, 3, height, width) of -1 to 1."""
    levels = to_levels(image).to(device).permute(2, 0, 1)[None]
    return levels.float() / 127.5 - 1
