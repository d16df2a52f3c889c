"""What the worker needs of an engine; knows no tensor."""

import threading
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

    def raise_if_cancelled(self) -> None:
        if self._event.is_set():
            raise Cancelled


class Engine(Protocol):
    """Turns requests into images, one request at a time."""

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

    async def generate(self, request: GenerationRequest) -> Generation:
        """Draw one image per seed, in their order.

        Waits for the model to be loaded. Cancelling the await ends the work at its next step.
        `timings_ms` has `load`, `queue`, `text_encode`, `denoise` and `decode`.

        Raises:
            InvalidInput: the prompt has more tokens than the model reads.
            ModelUnavailable, WeightsUnreadable, DeviceUnavailable: the model cannot be loaded.
            OutOfMemory, NumericalFault: the device could not draw this request.
        """
        ...

    def boot_ms(self) -> dict[str, float]:
        """Milliseconds by phase that this engine has spent on getting ready so far."""
        ...

    def stop(self) -> None:
        """End what is running at its next step, drop all models, free the device."""
        ...
