"""Sizes and checksums of files, several files at a time. Knows no model and no torch."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from pixpod.manifest import CHUNK_BYTES, WeightFile

Progress = Callable[[int], object]
"""Told of the bytes read since the last call, from several threads."""

_THREADS = 4
_WEIGHTS = ".safetensors"


def describe_file(folder: Path, path: str, progress: Progress) -> WeightFile:
    """What a manifest says of a file; chunks for weights only, which are read in parts.

    Raises OSError if it cannot be read.
    """
    sha256 = hashlib.sha256()
    chunks = []
    size_bytes = 0
    buffer = bytearray(min(CHUNK_BYTES, (folder / path).stat().st_size))
    with (folder / path).open("rb", buffering=0) as file:
        while count := _fill(file.readinto, buffer):
            piece = memoryview(buffer)[:count]
            sha256.update(piece)
            chunks.append(xxhash.xxh3_64_hexdigest(piece))
            size_bytes += count
            progress(count)
    return WeightFile(
        path=path,
        size_bytes=size_bytes,
        sha256=sha256.hexdigest(),
        chunks=tuple(chunks) if path.endswith(_WEIGHTS) else (),
    )


def describe_files(
    folder: Path, paths: Sequence[str], progress: Progress
) -> tuple[WeightFile, ...]:
    """In the order of `paths`. Hashing leaves the interpreter's lock, so threads help."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="checksum") as threads:
        return tuple(threads.map(lambda path: describe_file(folder, path, progress), paths))


def total_bytes(folder: Path, paths: Iterable[str]) -> int:
    return sum((folder / path).stat().st_size for path in paths)


def _fill(read_into: Callable[[memoryview], int | None], buffer: bytearray) -> int:
    """As much of the buffer as the file has; a read may return less than what was asked for."""
    view = memoryview(buffer)
    filled = 0
    while filled < len(view) and (count := read_into(view[filled:])):
        filled += count
    return filled
