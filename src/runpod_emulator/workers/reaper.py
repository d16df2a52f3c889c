"""Kills the process groups that are left when the emulator ends, however that happens.

A worker whose platform is gone polls a closed port in a tight loop, and its pings never stop. So a
small process in a session of its own reads `+PGID` and `-PGID` from a pipe. When the pipe closes,
also after a SIGKILL of the emulator, it kills each group that is still registered.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

_LINE = re.compile(rb"([+-])([0-9]+)\n")
"""A line with its end, so that an incomplete number is never read."""


class Reaper:
    """The emulator's end of the pipe. Use it between `start` and `stop` only."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # by path and without site: it needs nothing of this package, and is ready sooner so
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(Path(__file__).resolve())),
            stdin=asyncio.subprocess.PIPE,
            # or a reader of the emulator's output would wait for this process as well
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def add(self, pgid: int) -> None:
        """Kill this group when the emulator ends. Refuses the emulator's own group."""
        if pgid <= 1 or pgid == os.getpgrp():
            raise ValueError(f"pgid: expected the process group of a worker, got {pgid}")
        process, _ = self._started()
        if process.returncode is not None:
            logger.warning("reaper has ended: workers may outlive the emulator")
        self._write(f"+{pgid}\n")

    def remove(self, pgid: int) -> None:
        self._write(f"-{pgid}\n")

    async def stop(self) -> None:
        """Kill the groups that are still registered."""
        process, pipe = self._started()
        pipe.close()
        await process.wait()

    def _write(self, line: str) -> None:
        process, pipe = self._started()
        if process.returncode is None:
            pipe.write(line.encode())

    def _started(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamWriter]:
        assert self._process is not None and self._process.stdin is not None, "not started"
        return self._process, self._process.stdin


def kill_group(pgid: int) -> None:
    """Send SIGKILL to a process group, which may have ended already."""
    # PermissionError: macOS says so of a group of which only zombies are left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def reap(lines: Iterable[bytes]) -> None:
    """Follow `lines` until they end, then kill the groups that are registered by then."""
    pgids: set[int] = set()
    for line in lines:
        if match := _LINE.fullmatch(line):
            change = pgids.add if match[1] == b"+" else pgids.discard
            change(int(match[2]))
    for pgid in pgids - {0, 1, os.getpgrp()}:
        kill_group(pgid)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    reap(sys.stdin.buffer)


if __name__ == "__main__":
    main()
