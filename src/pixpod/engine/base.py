"""The engine as the worker sees it. Knows no tensor."""

from collections.abc import Callable
from typing import Protocol

from pixpod.job import Generation, GenerationRequest


class Cancelled(Exception):
    """A generation ended early because its caller has given up; never leaves an engine."""


StepListener = Callable[[int, int], None]
"""Called by the device's thread with the number of denoiser calls done and of all, for each request
of a batch; must return at once.
"""

OnStep = Callable[[int], None]
"""Called with the number of denoiser calls done; raises Cancelled if no request waits for them."""


class Engine(Protocol):
    """Turns requests into images; requests with the same batch key may share a batch."""

    @property
    def device_name(self) -> str:
        """Name of the GPU as its driver has it, or `cpu`; known once something was generated."""
        ...

    @property
    def is_warm(self) -> bool:
        """Return True once each preloaded model is warmed up or has failed to load.

        Without preloading, return True once an image was generated.
        """
        ...

    def start(self) -> None:
        """Begin to load the served models in the background."""
        ...

    def check_host(self) -> None:
        """Raise a WorkerError of Fault.HOST if quick checks show that this host cannot serve."""
        ...

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        """Generate one image per seed, in their order.

        Waits for the model to be loaded. Cancelling the await ends the work at its next step.
        `timings_ms` has the phases that ran, of `load`, `queue`, `onload` and the stages.

        Raises:
            InvalidInput: the prompt has more tokens than the model reads.
            WeightsRefused, AdapterUnusable: a LoRA does not fit the model.
            ModelUnavailable, WeightsUnreadable, DeviceUnavailable: the model cannot be loaded.
            OutOfMemory, NumericalFault: the device could not generate the images.
        """
        ...

    def boot_ms(self) -> dict[str, float]:
        """Return the milliseconds by phase that this engine has spent on getting ready so far."""
        ...

    def stop(self) -> None:
        """End running requests at their next step, drop all models, free the device."""
        ...
