"""Sizes and checksums of files, several files at a time. Knows no model and no torch."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

import xxhash

from pixpod.weights.manifest import CHUNK_BYTES, WeightFile

Progress = Callable[[int], object]
"""Called with the number of bytes read since the last call, from several threads."""

_THREADS = 4
_BLOCK_BYTES = 1024 * 1024
_WEIGHTS = ".safetensors"


def describe_file(folder: Path, path: str, progress: Progress) -> WeightFile:
    """Return a file's entry in a manifest; with chunks for weights only, which are read in parts.

    Raises OSError if it cannot be read.
    """
    sha256 = hashlib.sha256()
    chunks = []
    size_bytes = 0
    with (folder / path).open("rb") as file:
        while chunk_bytes := _read_chunk(file, sha256, xxh3 := xxhash.xxh3_64(), progress):
            chunks.append(xxh3.hexdigest())
            size_bytes += chunk_bytes
    return WeightFile(
        path=path,
        size_bytes=size_bytes,
        sha256=sha256.hexdigest(),
        chunks=tuple(chunks) if path.endswith(_WEIGHTS) else (),
    )


def describe_files(
    folder: Path, paths: Sequence[str], progress: Progress
) -> tuple[WeightFile, ...]:
    """Describe files in the order of `paths`, in threads, as hashing releases Python's lock."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="checksum") as threads:
        return tuple(threads.map(lambda path: describe_file(folder, path, progress), paths))


def total_bytes(folder: Path, paths: Iterable[str]) -> int:
    return sum((folder / path).stat().st_size for path in paths)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


def _read_chunk(file: IO[bytes], first: _Hash, second: _Hash, progress: Progress) -> int:
    """Update both hashes with the next CHUNK_BYTES, in blocks that fit into a processor's cache."""
    left_bytes = CHUNK_BYTES
    while left_bytes and (block := file.read(min(_BLOCK_BYTES, left_bytes))):
        first.update(block)
        second.update(block)
        left_bytes -= len(block)
        progress(len(block))
    return CHUNK_BYTES - left_bytes
