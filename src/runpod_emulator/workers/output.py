"""Copies the output of workers to log files, and keeps the newest of these."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_LOG_BYTES = 10_000_000
"""Size at which a log becomes `NAME.1`, in place of an older one."""
MAX_LINE_BYTES = 16_384
"""Lines longer than this reach `echo` and the tail in pieces."""
TAIL_LINES = 200
NUM_LOGS_KEPT = 100
"""Number of log files of ended workers that are kept."""


def remove_old_logs(directory: Path, living: Collection[str], keep: int = NUM_LOGS_KEPT) -> None:
    """Keep the newest logs, besides those of the workers whose ids are `living`."""
    ended = [log for log in directory.iterdir() if log.name.partition(".")[0] not in living]
    newest_first = sorted(ended, key=lambda log: log.stat().st_mtime, reverse=True)
    for log in newest_first[keep:]:
        log.unlink()


class WorkerOutput(asyncio.Protocol):
    """Copies a worker's output to the log, and line by line to `echo` and the tail."""

    def __init__(self, log: Path, echo: Callable[[str], None] | None) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.is_closed = asyncio.Event()
        self._log = log
        self._echo = echo
        self._rest = b""
        log.touch(mode=0o600)
        self._file = log.open("ab", buffering=0)

    def data_received(self, data: bytes) -> None:
        self._write(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._say(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._file.close()
        self.is_closed.set()
        if self._rest:
            self._say(self._rest)

    def _write(self, data: bytes) -> None:
        if self._file.closed:
            return
        try:
            if self._file.tell() + len(data) > MAX_LOG_BYTES:
                self._rotate()
            self._file.write(data)
        except OSError as exc:
            self._file.close()
            logger.warning(
                "worker log given up", extra={"log": str(self._log), "cause": exc.strerror}
            )

    def _rotate(self) -> None:
        self._file.close()
        self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        self._log.touch(mode=0o600)
        self._file = self._log.open("ab", buffering=0)

    def _say(self, line: bytes) -> None:
        # the last state of a progress bar, as a terminal shows it
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]
        for start in range(0, len(shown) or 1, MAX_LINE_BYTES):
            text = shown[start : start + MAX_LINE_BYTES].decode(errors="backslashreplace")
            self.tail.append(text)
            if self._echo is not None:
                self._echo(text)
