"""A lock on a file, which the kernel releases when the process ends, however that happens."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file during the context. Raises BlockingIOError if another process has locked it."""
    path.touch(mode=0o600)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
