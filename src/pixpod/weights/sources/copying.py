"""Copies files once, checks each by its sha256, and resumes copies that were interrupted.

A file is `<name>.part` until it is complete, checked and on the disk; then it gets its name.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pixpod.errors import ModelUnavailable, WeightsUnreadable, WorkerError
from pixpod.weights.disk import BLOCK_BYTES, Progress, check_space, disk_faults, rename_durably
from pixpod.weights.manifest import WeightFile

_THREADS = 4
"""Threads, each copying a file. A shard has at most 4 GB, so that large models use all threads."""


def copy_files(source: Path, target: Path, files: Sequence[WeightFile], progress: Progress) -> None:
    """Copy all files of a folder into another, which may have some of them already.

    Call it under a lock: two concurrent copies into one folder would damage each other.

    Raises:
        ModelUnavailable: a file of the source is missing, cut short or damaged. The source is
            shared by all hosts, so that another host would find the same.
        WeightsUnreadable: the source or the disk could not be read or written here.
        DiskFull: the files do not fit.
    """
    check_room(source, target, files)
    with disk_faults(target, f"copy of {source}"):
        run = _Run(source=source, target=target, files=files, progress=progress)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as threads:
            for _ in threads.map(run.copy, files):
                pass
        if run.failure:
            raise run.failure


def check_room(source: Path, target: Path, files: Sequence[WeightFile]) -> None:
    """Raise DiskFull unless the missing bytes of the files fit on the target's disk."""
    what = f"copy of {source}"
    with disk_faults(target, what):
        left_bytes = sum(file.size_bytes - _bytes_there(target, file) for file in files)
        check_space(target, left_bytes, what)


def _bytes_there(target: Path, file: WeightFile) -> int:
    for path in (target / file.path, _part(target / file.path)):
        with contextlib.suppress(FileNotFoundError):
            return min(path.stat().st_size, file.size_bytes)
    return 0


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


class _Stopped(Exception):
    """The copy of this file was stopped because another file failed."""


@dataclass(kw_only=True, eq=False)
class _Run:
    """One call of `copy_files`. The first file that fails stops the others at their next block."""

    source: Path
    target: Path
    files: Sequence[WeightFile]
    progress: Progress
    failure: WorkerError | OSError | None = None

    def __post_init__(self) -> None:
        self._total_bytes = sum(file.size_bytes for file in self.files)
        self._done_bytes = 0
        self._lock = threading.Lock()

    def copy(self, file: WeightFile) -> None:
        """Copy a file, unless another has failed; keep the first error for the caller to raise."""
        try:
            self._copy(file)
        except _Stopped:
            return
        except (WorkerError, OSError) as exc:
            with self._lock:
                self.failure = self.failure or exc

    def _copy(self, file: WeightFile) -> None:
        if self.failure:
            raise _Stopped
        target = self.target / file.path
        if target.exists() and target.stat().st_size == file.size_bytes:
            self._note(file.size_bytes)
            return
        part = _part(target)
        part.parent.mkdir(parents=True, exist_ok=True)
        was_begun = part.exists()
        digest = self._fill(file, part)
        if digest != file.sha256 and was_begun:  # the part may be wrong, not the source
            digest = self._fill_again(file, part)
        if digest != file.sha256:
            self._judge(file, digest, self._fill_again(file, part))
        rename_durably(part, target)

    def _fill_again(self, file: WeightFile, part: Path) -> str:
        part.unlink()
        self._note(-file.size_bytes)
        return self._fill(file, part)

    def _judge(self, file: WeightFile, first: str, second: str) -> None:
        """Raise the error for bytes, read twice, that differ from the manifest: the source's fault
        if both reads agree, else this host's.
        """
        if second == file.sha256:
            return
        _part(self.target / file.path).unlink()
        path = self.source / file.path
        if first == second:
            raise ModelUnavailable(
                f"{path} is damaged: expected sha256 {file.sha256}, got {second}: "
                "write this model to the volume again (scripts/bake)"
            )
        raise WeightsUnreadable(f"{path}: each time it is read, other bytes come")

    def _fill(self, file: WeightFile, part: Path) -> str:
        """Append the missing bytes of the source, and return the sha256 of the whole."""
        path = self.source / file.path
        digest = hashlib.sha256()
        with _open_source(path) as source, part.open("a+b") as target:
            _check_size(path, os.fstat(source.fileno()).st_size, file)
            if os.fstat(target.fileno()).st_size > file.size_bytes:
                target.truncate(0)
            target.seek(0)
            while block := target.read(BLOCK_BYTES):
                self._take(block, digest)
            source.seek(target.tell())
            while block := _read(source, path):
                target.write(block)
                self._take(block, digest)
            _check_size(path, target.tell(), file)
            target.flush()
            os.fsync(target.fileno())
            # another try has to read from the volume, not from this host's page cache
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return digest.hexdigest()

    def _take(self, block: bytes, digest: "hashlib._Hash") -> None:
        if self.failure:
            raise _Stopped
        digest.update(block)
        self._note(len(block))

    def _note(self, new_bytes: int) -> None:
        with self._lock:
            self._done_bytes += new_bytes
            self.progress(self._done_bytes, self._total_bytes)


def _open_source(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise ModelUnavailable(
            f"{path} is in manifest.toml, but cannot be opened ({exc.strerror}): write this model "
            "to the volume again (scripts/bake)"
        ) from exc
    except OSError as exc:
        raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc


def _read(source: BinaryIO, path: Path) -> bytes:
    try:
        return source.read(BLOCK_BYTES)
    except OSError as exc:
        raise WeightsUnreadable(f"{path}: {exc.strerror}") from exc


def _check_size(path: Path, found_bytes: int, file: WeightFile) -> None:
    if found_bytes != file.size_bytes:
        raise ModelUnavailable(
            f"{path}: expected {file.size_bytes} bytes as in manifest.toml, got {found_bytes}: "
            "write this model to the volume again (scripts/bake)"
        )
