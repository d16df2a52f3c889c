"""Waiting for a device without a word to what other threads do there."""

import torch


def synchronize_stream(device: torch.device) -> None:
    """Wait for what this thread has asked of the device, so that time stamps and bytes mean what
    they say.

    Not for the whole device: that fails while launches are being recorded on any thread, breaks
    the recording, and torch's allocator never gets over it.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
