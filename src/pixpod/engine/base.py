"""What the worker needs of an engine; knows no tensor."""

import threading
from collections.abc import Callable
from typing import Protocol

from pixpod.job import Generation, GenerationRequest


class Cancelled(Exception):
    """A generation ended early because nobody waits for it any more; never leaves an engine."""


class CancelToken:
    """Tells the device's thread that nobody waits for a generation any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()


StepListener = Callable[[int, int], None]
"""Called by the device's thread with the number of steps done and of all, for each request of a
batch; must return at once.
"""


class Engine(Protocol):
    """Turns requests into images; those that may share a batch are drawn together."""

    @property
    def device_name(self) -> str:
        """The card as its driver names it, or `cpu`; known once something was generated."""
        ...

    def start(self) -> None:
        """Begin to load what is to be served, in the background."""
        ...

    def check_host(self) -> None:
        """Raises a WorkerError of Fault.HOST if it takes but a moment to see that nothing can be
        served here.
        """
        ...

    async def generate(
        self, request: GenerationRequest, on_step: StepListener | None = None
    ) -> Generation:
        """Draw one image per seed, in their order.

        Waits for the model to be loaded. Cancelling the await ends the work at its next step.
        `timings_ms` has `load`, `queue`, `swap`, `text_encode`, `denoise` and `decode`.

        Raises:
            InvalidInput: the prompt has more tokens than the model reads.
            ModelUnavailable, WeightsUnreadable, DeviceUnavailable: the model cannot be loaded.
            OutOfMemory, NumericalFault: the device could not draw this request.
        """
        ...

    @property
    def is_warm(self) -> bool:
        """Whether all that is loaded from the start is there, or cannot be, and warmed up; without
        any such, whether something was drawn.
        """
        ...

    def boot_ms(self) -> dict[str, float]:
        """Milliseconds by phase that this engine has spent on getting ready so far."""
        ...

    def stop(self) -> None:
        """End what is running at its next step, drop all models, free the device."""
        ...
