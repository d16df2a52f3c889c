"""Sets the page cache, starts a measured process and waits for it."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import IO

from pixpod_bench.cold.plain_read import PlainRead
from pixpod_bench.cold.probe import PREPARED
from pixpod_bench.cold.runs import Before, NotHere, Sample
from pixpod_bench.machine import environment

LIMIT_S = 240.0
"""Longest duration of a run, in seconds: a process that hangs must not use up a rented machine."""

_DROP = Path("/proc/sys/vm/drop_caches")
_CLEAN_PAGES_AND_ENTRIES = "3"


class PageCache(StrEnum):
    """State of the files in memory before the run begins."""

    WARM = "warm"
    DROPPED = "dropped"

    def prepare(self, paths: Sequence[Path], *, everything: bool) -> None:
        """Read these files into memory, or drop them from it.

        With `everything`, drop all files of the machine, Python's own included, which needs root.
        """
        if self is PageCache.WARM:
            PlainRead(paths).wait()
            return
        os.sync()  # pages that are not written yet cannot be dropped
        if everything:
            _DROP.write_text(_CLEAN_PAGES_AND_ENTRIES, encoding="ascii")
        else:
            for path in paths:
                _drop(path)


def can_drop_everything() -> bool:
    """Return whether the whole page cache can be dropped, which Linux allows root."""
    return os.access(_DROP, os.W_OK)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def run_probe(order: Mapping[str, object], before: Before) -> Sample:
    """Run a probe that prepares first; `before` is called between that and the run.

    Raises NotHere, with the last line of its error, if it fails.
    """
    with _started(order) as (process, errors):
        assert process.stdout
        if process.stdout.readline().strip() != PREPARED:
            raise NotHere(_reason(process, errors))
        before()
        return _outcome(process, errors)


def run_whole_probe(order: Mapping[str, object], before: Before) -> Sample:
    """Run a probe as `run_probe` does, with seconds from the start of its process."""
    before()
    began = time.perf_counter()
    with _started(order) as (process, errors):
        sample = _outcome(process, errors)
        return replace(sample, seconds=time.perf_counter() - began)


@contextmanager
def _started(order: Mapping[str, object]) -> "Iterator[tuple[subprocess.Popen[str], IO[str]]]":
    command = [sys.executable, "-m", "pixpod_bench.cold.probe", json.dumps(order)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            command,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            yield process, errors
        finally:
            limit.cancel()
            process.kill()
            process.communicate()


def _outcome(process: "subprocess.Popen[str]", errors: IO[str]) -> Sample:
    """Start the run and return the line that the probe ends with. Raises NotHere."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return Sample(**json.loads(line))
    raise NotHere(_reason(process, errors))


def _reason(process: "subprocess.Popen[str]", errors: IO[str]) -> str:
    status = process.wait(LIMIT_S)
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else f"ended with status {status}"
