"""Starts what is measured, with the page cache as it shall be, and waits for it."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import IO

from pixpod_bench.cold.plain_read import PlainRead, ReadPlan
from pixpod_bench.cold.probe import PREPARED
from pixpod_bench.cold.runs import NotHere, Sample

ROOT = Path(__file__).parents[3]
LIMIT_S = 240.0
"""Of one run: what hangs must not use up a machine that is lent."""

_WARMING = ReadPlan(threads=2, block_bytes=8 * 2**20)
_DROP = Path("/proc/sys/vm/drop_caches")
_CLEAN_PAGES_AND_ENTRIES = "3"


class PageCache(StrEnum):
    """Whether the files are in memory before the run begins."""

    WARM = "warm"
    DROPPED = "dropped"

    def prepare(self, paths: Sequence[Path], *, everything: bool) -> None:
        """Bring these files into memory, or put them out of it; with `everything` all files of
        the machine, also Python's own, which needs root.
        """
        if self is PageCache.WARM:
            PlainRead(paths, _WARMING).wait()
            return
        os.sync()  # what is not written yet cannot be dropped
        if everything:
            _DROP.write_text(_CLEAN_PAGES_AND_ENTRIES, encoding="ascii")
        else:
            for path in paths:
                _drop(path)


def can_drop_everything() -> bool:
    """Linux lets root do it."""
    return os.access(_DROP, os.W_OK)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of all that is measured: no network, our sources, nobody's settings."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIXPOD_", "RUNPOD_", "BUCKET_", "AWS_"))
    }
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT / "src"), inherited.get("PYTHONPATH")])
        ),
        **(extra or {}),
    }


def run_code(code: str, extra: Mapping[str, str], before: Callable[[], None]) -> Sample:
    """A whole Python process that runs one line of code. Raises NotHere if that fails."""
    before()
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603 (our own code, no shell)
        [sys.executable, "-c", code],
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise NotHere(([*done.stderr.strip().splitlines(), "failed"])[-2])
    return Sample(seconds=seconds)


def run_probe(order: Mapping[str, object], before: Callable[[], None]) -> Sample:
    """Run a probe that prepares first; `before` is called between that and the run.

    Raises NotHere, with the last line of its error, if it fails.
    """
    with _started(order) as (process, errors):
        assert process.stdout and process.stdin
        if process.stdout.readline().strip() != PREPARED:
            raise NotHere(_reason(process, errors))
        before()
        process.stdin.write("\n")
        process.stdin.flush()
        return _outcome(process, errors)


def run_whole_probe(order: Mapping[str, object], before: Callable[[], None]) -> Sample:
    """As `run_probe`, but the seconds are from the start of the process."""
    before()
    began = time.perf_counter()
    with _started(order) as (process, errors):
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        sample = _outcome(process, errors)
    assert sample.ended_at is not None
    return replace(sample, seconds=sample.ended_at - began)


@contextmanager
def _started(
    order: Mapping[str, object],
) -> "Iterator[tuple[subprocess.Popen[str], IO[str]]]":
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
    """The line that a probe ends with, and when it came."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("{"):
            ended_at = time.perf_counter()
            document = json.loads(line)
            return Sample(**document, ended_at=ended_at)
    raise NotHere(_reason(process, errors))


def _reason(process: "subprocess.Popen[str]", errors: IO[str]) -> str:
    status = process.wait(LIMIT_S)
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else f"ended with status {status}"
