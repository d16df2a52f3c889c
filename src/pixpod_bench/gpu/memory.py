"""Memory of a GPU as torch and its driver count it; None on a CPU, where neither does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_POLL_S = 0.02


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated_bytes(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int | None:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most that was allocated since the last reset."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_reserved_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


@dataclass(slots=True)
class DriverPeak:
    """The most memory of the whole GPU that its driver showed as used."""

    peak_bytes: int | None = None


@contextmanager
def watching_driver(device: torch.device) -> Iterator[DriverPeak]:
    """Read the driver's figure from a thread of its own, and reset torch's peak."""
    found, ended = DriverPeak(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            free, total = torch.cuda.mem_get_info(device)
            found.peak_bytes = max(found.peak_bytes or 0, total - free)
            ended.wait(_POLL_S)

    if device.type != "cuda":
        yield found
        return
    reset_peak(device)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextmanager
def limited_to(limit_gib: float | None, device: torch.device) -> Iterator[None]:
    """Limit torch to this much of the GPU's memory, so that a wrong memory plan fails."""
    if limit_gib is None or device.type != "cuda":
        yield
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / total_bytes), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
