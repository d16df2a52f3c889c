"""Reads files in the simplest way: threads, preadv, reused buffers, no checksum.

Loaders are compared with it. Standard library only, so that it can start before anything else.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

THREADS = min(8, os.cpu_count() or 1)
BLOCK_BYTES = 2**20
"""Size of one read, the quickest of eight plans on two cores (1 to 8 threads, 1 and 8 MiB)."""


class PlainRead:
    """Reads all files once; begins when it is created."""

    def __init__(
        self, paths: Sequence[Path], threads: int = THREADS, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._blocks = _blocks(paths, block_bytes)
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._failure: OSError | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(block_bytes,), daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> int:
        """Return how many bytes were read, once all were. Raises OSError."""
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
