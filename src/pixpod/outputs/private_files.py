"""Files that only their owner may read, on disks that others may write to."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, until it is on the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not every network file system can do this
            os.fsync(number)
    finally:
        os.close(number)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return a file. Raises ValueError for one that is larger, or is no file, such as a pipe.

    Does not follow a link.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > max_bytes:
            raise ValueError(f"expected a file of at most {max_bytes} bytes, got something else")
        return file.read(max_bytes)
