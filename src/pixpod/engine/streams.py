"""Waiting for the work of one thread on the device, without waiting for that of others."""

import torch


def synchronize_stream(device: torch.device) -> None:
    """Wait for the work that this thread has queued on the device, so that times and memory
    figures taken afterwards include it.

    Synchronizing the whole device is reported to fail while any thread captures a graph, and to
    break the capture (NVIDIA/TensorRT#2888).
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Pace:
    """Keeps a thread at most one step ahead of the device.

    A captured step is queued in no time: without this, all steps of an image would be queued before
    the first is done, and could not be cancelled.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._queued: torch.cuda.Event | None = None

    def step(self) -> None:
        """Note that one more step is queued, and wait until the one before it is done."""
        if not self._is_cuda:
            return
        if self._queued is not None:
            self._queued.synchronize()
        # the core that a plain event would wait with is wanted for encoding and uploads
        self._queued = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._queued.record()
