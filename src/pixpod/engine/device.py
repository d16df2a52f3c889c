"""The device that models run on: its properties, its memory, and waiting for its work."""

import gc

import torch

from pixpod.engine.precision.float8 import computes_float8
from pixpod.engine.precision.precision import Hardware, limit_bytes
from pixpod.errors import DeviceUnavailable
from pixpod.gpus import find_gpu_class


def find_device(requested: str) -> torch.device:
    """Return the device for `auto`, `cuda` or `cpu`. Raises DeviceUnavailable for a missing GPU."""
    has_cuda = torch.cuda.is_available()
    if requested == "cuda" and not has_cuda:
        raise DeviceUnavailable("PIXPOD_DEVICE=cuda, but this host has no CUDA device that works")
    return torch.device("cuda" if has_cuda and requested != "cpu" else "cpu")


def prepare_device(requested: str) -> torch.device:
    """Return the device of `find_device` after a first computation, which initialises a GPU.

    Takes most of a second on a GPU. Raises DeviceUnavailable.
    """
    device = find_device(requested)
    check_device(device)
    return device


def check_device(device: torch.device) -> None:
    """Raise DeviceUnavailable unless the device computes. After an illegal access or a fault of the
    GPU, it never does so again in the same process.
    """
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as exc:  # what torch raises for a broken driver or a GPU in use
        raise DeviceUnavailable(f"{device} does not compute: {type(exc).__name__}") from exc


def name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def free_memory() -> None:
    """Free the memory of dropped models, whose modules have circular references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def find_hardware(device: torch.device, memory_limit_gib: float | None = None) -> Hardware:
    """Return the properties of the device, found before anything is loaded onto it.

    `memory_limit_gib` is the memory of a GPU that may be used, None for all. Raises
    DeviceUnavailable for a GPU that is too old.
    """
    if device.type != "cuda":
        return Hardware()
    gpu = find_gpu_class(torch.cuda.get_device_capability(device))
    has_bytes = torch.cuda.get_device_properties(device).total_memory
    return Hardware(
        gpu=gpu,
        memory_bytes=limit_bytes(has_bytes, memory_limit_gib),
        has_float8=gpu.has_float8(torch.__version__) and computes_float8(device),
    )


def limit_memory(device: torch.device, hardware: Hardware) -> None:
    """Limit torch's allocations to the memory of a GPU that may be used."""
    if device.type == "cuda" and hardware.memory_bytes is not None:
        has_bytes = torch.cuda.get_device_properties(device).total_memory
        if hardware.memory_bytes < has_bytes:
            torch.cuda.set_per_process_memory_fraction(hardware.memory_bytes / has_bytes, device)


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
        # a plain event would wait busily, on a core that encoding and uploads need
        self._queued = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._queued.record()
