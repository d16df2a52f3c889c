"""The plainest way to read files: threads, preadv, buffers that are used again, no checksum.

What a loader is compared with. Standard library only, so that it can start before anything else.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How many threads read, and how much at once."""

    threads: int
    block_bytes: int

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.block_bytes // 2**20} MiB"


PLANS = tuple(
    ReadPlan(threads=threads, block_bytes=mebibytes * 2**20)
    for threads in (1, 2, 4, 8)
    for mebibytes in (1, 8)
)
"""Those that are tried beforehand; the quickest is what a loader is compared with."""


class PlainRead:
    """Reads all files once; begins when it is made."""

    def __init__(self, paths: Sequence[Path], plan: ReadPlan) -> None:
        self._blocks = _blocks(paths, plan.block_bytes)
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._failure: OSError | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(plan.block_bytes,), daemon=True)
            for _ in range(plan.threads)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> int:
        """The bytes that were read, once all were. Raises OSError."""
        for thread in self._threads:
            thread.join()
        if self._failure:
            raise self._failure
        return self._read_bytes

    def _work(self, block_bytes: int) -> None:
        buffer = mmap.mmap(-1, block_bytes)
        opened: dict[Path, int] = {}
        read_bytes = 0
        try:
            while (block := self._next()) is not None:
                path, offset = block
                if path not in opened:
                    opened[path] = os.open(path, os.O_RDONLY)
                # a block at the end of a file is shorter than the buffer
                read_bytes += os.preadv(opened[path], [buffer], offset)
        except OSError as exc:
            self._failure = exc
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        with self._lock:
            self._read_bytes += read_bytes

    def _next(self) -> tuple[Path, int] | None:
        with self._lock:
            return None if self._failure else next(self._blocks, None)


def _blocks(paths: Sequence[Path], block_bytes: int) -> Iterator[tuple[Path, int]]:
    for path in paths:
        for offset in range(0, path.stat().st_size, block_bytes):
            yield path, offset
