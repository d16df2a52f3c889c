"""Local disks: free space, lock files, and writes that survive a power cut.

Standard library only.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pixpod.errors import DiskFull, ModelUnavailable, WeightsUnreadable

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from any thread, one call at a time."""

BLOCK_BYTES = 4 * 1024 * 1024

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MORE_ROOM = "give the worker more container disk or serve fewer models"


def check_space(directory: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskFull unless so many more bytes fit on the directory's disk."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    if needed_bytes > free_bytes:
        raise DiskFull(
            f"{what} needs {needed_bytes} bytes in {directory}, which has {free_bytes} free: "
            f"{_MORE_ROOM}"
        )


@contextlib.contextmanager
def disk_faults(directory: Path, what: str) -> Iterator[None]:
    """Translate errors of the system while something is written into a directory.

    Raises:
        DiskFull: the disk filled up meanwhile.
        ModelUnavailable: the directory is not writable, which is the same on every host.
        WeightsUnreadable: any other error, such as a bad disk.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno is None:  # of a library, not of the system
            raise
        if exc.errno in _NO_ROOM:
            raise DiskFull(f"{what}: no room is left in {directory}: {_MORE_ROOM}") from exc
        if exc.errno in _NOT_ALLOWED:
            raise ModelUnavailable(
                f"{what}: {directory}: {exc.strerror}: name a directory that the worker may write"
            ) from exc
        raise WeightsUnreadable(f"{what}: {exc.filename or directory}: {exc.strerror}") from exc


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Lock a file against all other processes and threads; wait until it is free.

    The system releases the lock when the process ends, however that happens. The file stays.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a text so that the whole of it or nothing is there, also after a power cut."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(part, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file whose contents are already on the disk, so that the new name is, too."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
