"""Waiting for what a thread has asked of the device, without a word to others."""

import torch


def synchronize_stream(device: torch.device) -> None:
    """Wait for what this thread has asked of the device, so that time stamps and bytes mean what
    they say.

    Not for the whole device: that is reported to fail while launches are being recorded on any
    thread, and to break the recording (NVIDIA/TensorRT#2888).
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Pace:
    """Keeps a thread at most one step ahead of the device.

    A recorded step takes no time to ask for: all of an image's would be under way before the first
    is done, beyond recall.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._asked: torch.cuda.Event | None = None

    def step(self) -> None:
        """Called when one more step has been asked for; waits until the one before it is done."""
        if not self._is_cuda:
            return
        if self._asked is not None:
            self._asked.synchronize()
        # the core that a plain event would wait with is wanted for encoding and uploads
        self._asked = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._asked.record()
