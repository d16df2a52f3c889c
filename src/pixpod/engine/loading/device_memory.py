"""Provides the bytes of weight files as tensors on the device: mapped on a CPU, copied to a GPU.

Bytes go to a GPU through page-locked buffers on streams of their own, the only way to use the full
speed of its bus: a copy from pageable memory reaches a fraction of it. Several threads copy,
because one thread's memcpy is slower than the bus.
"""

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pixpod.weights.prefetch import MappedFile, Prefetch

BUFFER_BYTES = 16 * 1024 * 1024
"""One page-locked buffer. Each copying thread has two: one is filled while one is sent."""

COPYING_THREADS = 4


def file_bytes(prefetch: Prefetch, path: Path, device: torch.device) -> torch.Tensor:
    """Return a file as uint8 (bytes,) on the device, once it has been read and checked.

    Raises WeightsUnreadable if it is damaged, torch.OutOfMemoryError if it does not fit.
    """
    if device.type == "cpu":
        return _as_tensor(prefetch.wait(path))
    return copy_to_device(prefetch, path, device)


def copy_to_device(prefetch: Prefetch, path: Path, device: torch.device) -> torch.Tensor:
    """Copy a file to the device, never mapped. Each piece is sent as soon as it has been read.

    Raises the errors of `file_bytes`.
    """
    source = _as_tensor(prefetch.mapped(path))
    target = torch.empty(len(source), dtype=torch.uint8, device=device)
    lanes = [_Lane(device) for _ in range(COPYING_THREADS)]
    free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def send(begin: int, end: int) -> None:
        lane = free.get()
        lane.send(source[begin:end], target[begin:end])
        free.put(lane)

    with ThreadPoolExecutor(COPYING_THREADS, thread_name_prefix="copy") as pool:
        sent = [
            pool.submit(send, begin, min(begin + BUFFER_BYTES, offset + size_bytes))
            for offset, size_bytes in prefetch.ranges(path)
            for begin in range(offset, offset + size_bytes, BUFFER_BYTES)
        ]
    for future in sent:
        future.result()
    for lane in lanes:
        lane.finish()
    return target


class _Lane:
    """Two buffers and a stream for copies to a GPU; used by one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        # torch has no types for streams and events
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._buffers = [
            torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)
        ]
        self._sent = [
            torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
            for _ in range(2)
        ]
        self._turn = 0
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy at most BUFFER_BYTES; the copy may still be under way at return."""
        self._turn = 1 - self._turn
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()  # until then the buffer is being read
        buffer = self._buffers[self._turn][: len(source)]
        buffer.copy_(source)
        with torch.cuda.stream(self._stream):
            target.copy_(buffer, non_blocking=True)
        if sent is not None:
            sent.record(self._stream)

    def finish(self) -> None:
        if self._stream:
            self._stream.synchronize()


def _as_tensor(mapped: MappedFile) -> torch.Tensor:
    """Return the mapping itself as a tensor, without a copy; it lives as long as its tensors."""
    if not len(mapped.bytes):
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mapped.bytes, dtype=torch.uint8)
