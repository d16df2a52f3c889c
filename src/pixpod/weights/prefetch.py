"""Reads weight files ahead and checks them, in threads, while everything else is imported.

Needs the standard library and xxhash only, so that it can start before torch is imported. Files
that have been read are in the page cache and mapped: a CPU's tensors are views of these mappings,
a GPU's are copied from them. Knows no model and no tensor.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import xxhash

from pixpod.errors import OutOfMemory, WeightsUnreadable
from pixpod.timeline import Span
from pixpod.weights.manifest import CHUNK_BYTES, WeightFile

NICENESS = 10
"""Niceness of reading threads on the scale of nice(1): 0 is the default, 19 the lowest priority."""


class Verify(StrEnum):
    """The check that a boot makes while it reads: only sizes, each chunk's fast checksum, or each
    file's sha256. Every byte is read in any case.
    """

    SIZES = "sizes"
    CHUNKS = "chunks"
    FULL = "full"


class MappedFile:
    """A file in memory, mapped privately: writes to a view never reach the disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Map a file. Raises WeightsUnreadable unless it can be opened and has the given size."""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                found, self.inode = status.st_size, (status.st_dev, status.st_ino)
                if found != size_bytes:
                    raise WeightsUnreadable(f"{path}: expected {size_bytes} bytes, got {found}")
                # an empty file cannot be mapped
                self._map = (
                    mmap.mmap(file.fileno(), found, access=mmap.ACCESS_COPY) if found else b""
                )
        except OSError as exc:
            if exc.errno == errno.ENOMEM:
                raise OutOfMemory(f"{path}: no room to map {size_bytes} bytes") from exc
            raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc
        self.path = path
        self.bytes = memoryview(self._map)

    def read_ahead(self, offset: int, size_bytes: int) -> None:
        """Let the kernel begin with a range, a multiple of the page size from the start."""
        if isinstance(self._map, mmap.mmap):
            with contextlib.suppress(OSError):  # a hint only; reading reports any error
                self._map.madvise(mmap.MADV_WILLNEED, offset, size_bytes)


@dataclass(kw_only=True, eq=False)
class Prefetch:
    """Reads files in the order of their models; `prefer` puts one model first.

    All methods may be called from any thread. After a file that cannot be read, or differs from its
    manifest, all waits raise: a host with one bad file serves nothing. The thread that finds the
    damage calls `on_damage`, once, so that it is reported even if no thread waits.
    """

    threads: int
    verify: Verify
    clock: Callable[[], float] = time.perf_counter
    on_damage: Callable[[WeightsUnreadable], None] = lambda damage: None

    def __post_init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._files: dict[Path, _File] = {}  # under each of their names
        self._inodes: dict[tuple[int, int], _File] = {}
        self._queues: dict[str, deque[_Piece]] = {}
        self._damage: WeightsUnreadable | None = None
        self._is_stopped = False

    def add(self, model: str, files: Mapping[Path, WeightFile]) -> None:
        """Queue a model's files behind those that are already to be read.

        A file that several models share, by links or not, is read once. Raises WeightsUnreadable
        for a file that is missing or has another size.
        """
        for path, file in files.items():
            self._add_file(model, path, file)
        with self._changed:
            waiting = sum(len(queue) for queue in self._queues.values())
            for number in range(len(self._threads), min(self.threads, waiting)):
                thread = threading.Thread(target=self._work, name=f"read-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def prefer(self, model: str) -> None:
        """Read the remaining files of this model before all others."""
        with self._changed:
            if model in self._queues:
                self._queues = {model: self._queues.pop(model), **self._queues}

    def ranges(self, path: Path) -> Iterator[tuple[int, int]]:
        """Yield (offset, bytes) of each piece of a file in order, once it has been read.

        The file must have been added. Raises WeightsUnreadable, like `wait`.
        """
        for piece in self._files[path.resolve()].pieces:
            with self._changed:
                while not (piece.is_read or self._damage or self._is_stopped):
                    self._changed.wait()
                if self._damage:
                    raise self._damage
                if not piece.is_read:
                    raise WeightsUnreadable(f"{path}: not read, because the worker is stopping")
            yield piece.offset, piece.size_bytes

    def wait(self, path: Path) -> MappedFile:
        """Return the whole file, once it has been read and checked. Raises WeightsUnreadable."""
        for _ in self.ranges(path):
            pass
        return self._files[path.resolve()].mapped

    def mapped(self, path: Path) -> MappedFile:
        """Return the file, of which only pieces that `ranges` has yielded may be used."""
        return self._files[path.resolve()].mapped

    def spans(self) -> tuple[Span, ...]:
        """Return the files read completely so far as spans of the boot, in order of their begin."""
        with self._changed:
            done = [file for file in self._inodes.values() if not file.unread]
        spans = (
            Span(
                phase="read",
                subject=f"{file.model}/{file.path.parent.name}/{file.path.name}",
                began_s=file.began_s,
                ended_s=file.ended_s,
                size_bytes=len(file.mapped.bytes),
            )
            for file in done
            if file.pieces
        )
        return tuple(sorted(spans, key=lambda span: span.began_s))

    def stop(self) -> None:
        """End the threads, each after the piece that it is reading, and all waits."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # --- reading ------------------------------------------------------------------------------

    def _add_file(self, model: str, path: Path, expected: WeightFile) -> None:
        key = path.resolve()
        if key in self._files:
            return
        mapped = MappedFile(path, expected.size_bytes)
        pieces = tuple(_cut(mapped, expected, self.verify))
        with self._changed:
            if mapped.inode not in self._inodes:
                self._inodes[mapped.inode] = _File(
                    model=model, path=path, mapped=mapped, pieces=pieces, unread=len(pieces)
                )
                self._queues.setdefault(model, deque()).extend(pieces)
            self._files[key] = self._inodes[mapped.inode]

    def _work(self) -> None:
        _give_way()
        while (piece := self._next()) is not None:
            began_s = self.clock()
            is_good = piece.read()
            with self._changed:
                damage = self._note(piece, began_s, is_good)
                self._changed.notify_all()
            if damage:
                self.on_damage(damage)

    def _next(self) -> "_Piece | None":
        """Return the next piece of the first model that has one left; None when reading is over."""
        with self._changed:
            while not self._is_stopped and self._damage is None:
                for queue in self._queues.values():
                    if queue:
                        return queue.popleft()
                self._changed.wait()
        return None

    def _note(self, piece: "_Piece", began_s: float, is_good: bool) -> WeightsUnreadable | None:
        """Note that a piece has been read; return the damage if it is the first."""
        file = self._files[piece.path.resolve()]
        file.began_s = min(file.began_s, began_s)
        file.ended_s = max(file.ended_s, self.clock())
        if is_good:
            piece.is_read = True
            file.unread -= 1
        elif self._damage is None:
            self._damage = WeightsUnreadable(
                f"{piece.path}: bytes {piece.offset} to {piece.offset + piece.size_bytes} are not "
                "what was baked: this copy is damaged"
            )
            return self._damage
        return None


@dataclass(slots=True, kw_only=True, eq=False)
class _Piece:
    """A part of a file that one thread reads in one go. `digest` is None for a part that is not
    checked: then its checksum is computed only in order to read every byte.
    """

    path: Path
    mapped: MappedFile
    offset: int
    size_bytes: int
    digest: str | None
    compute: Callable[[memoryview], str]
    is_read: bool = False

    def read(self) -> bool:
        """Read the bytes, and return whether they have the expected checksum."""
        self.mapped.read_ahead(self.offset, self.size_bytes)
        found = self.compute(self.mapped.bytes[self.offset : self.offset + self.size_bytes])
        return self.digest is None or found == self.digest


@dataclass(slots=True, kw_only=True, eq=False)
class _File:
    model: str
    path: Path
    mapped: MappedFile
    pieces: tuple[_Piece, ...]
    unread: int
    began_s: float = float("inf")
    ended_s: float = 0.0


def _cut(mapped: MappedFile, expected: WeightFile, verify: Verify) -> Iterator[_Piece]:
    """Cut a file into chunks with their fast checksums, if it has any, else keep it whole with its
    sha256.

    A large file without chunks was checked when it was downloaded; its sha256 would keep one
    thread busy for longer than all others need.
    """
    is_small = expected.size_bytes <= CHUNK_BYTES and not expected.chunks
    digests: tuple[str, ...]
    if expected.sha256 and (verify is Verify.FULL or (is_small and verify is Verify.CHUNKS)):
        digests, step_bytes, compute = (expected.sha256,), expected.size_bytes, _sha256
    else:
        digests = () if verify is Verify.SIZES else expected.chunks
        step_bytes, compute = CHUNK_BYTES, xxhash.xxh3_64_hexdigest
    for number, offset in enumerate(range(0, expected.size_bytes, step_bytes or 1)):
        yield _Piece(
            path=mapped.path,
            mapped=mapped,
            offset=offset,
            size_bytes=min(step_bytes, expected.size_bytes - offset),
            digest=digests[number] if digests else None,
            compute=compute,
        )


def _give_way() -> None:
    """Lower the priority of this thread: importing torch takes longer than reading, and checksums
    would delay it on few cores. Linux has a priority for each thread.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
