"""Compares the emulators of two checkouts by this checkout's benchmarks, in alternating pairs."""

import asyncio
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pixpod_bench.compare import Compared
from pixpod_bench.emulator.processes import own_environ
from pixpod_bench.emulator.throughput import measure_emulator, measure_idle, measure_loads
from pixpod_bench.figures import alternate
from pixpod_bench.machine import ROOT

NUM_WORKERS, CONCURRENCY = 2, 8
"""SDK workers and their jobs at a time."""

TREE, BASE = "this checkout", "base"

Figures = Mapping[tuple[str, str], float]
"""Times by subject and figure; more is worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The size of one measurement of one side."""

    num_rounds: int
    chaos_jobs: int
    load_seconds: float
    idle_seconds: float


def compare(base: Path, extent: Extent, pairs: int, on_run: Callable[[], object]) -> list[Compared]:
    """Compare with the checkout at `base`. `on_run` is called after each of `2 * pairs` runs."""
    with ExitStack() as stack:
        sides = {
            name: functools.partial(_measure, stack.enter_context(only_emulator(root)), extent)
            for name, root in {BASE: base, TREE: ROOT}.items()
        }
        samples = alternate(sides, pairs, on_run)
    return [
        Compared.of(what, subject, _values(samples[TREE], key), _values(samples[BASE], key))
        for key in samples[TREE][0]
        for what, subject in [key]
    ]


def _values(samples: Sequence[Figures], key: tuple[str, str]) -> list[float]:
    return [sample[key] for sample in samples]


def _measure(emulator: Path, extent: Extent, _round: int) -> Figures:
    rate = asyncio.run(measure_emulator(NUM_WORKERS, CONCURRENCY, extent.num_rounds, emulator))
    full, _ = asyncio.run(measure_loads(extent.load_seconds, emulator))
    idle_load = asyncio.run(measure_idle(extent.idle_seconds, emulator))
    return {
        ("SDK workers", "time per job"): 1 / rate.jobs_per_s,
        ("SDK workers", "CPU per job"): rate.cpu_ms_per_job,
        ("API at full load", "time per request"): 1 / full.requests_per_s,
        ("API at full load", "CPU per job"): full.jobs.cpu_ms_per_job,
        ("idle", "CPU"): idle_load,
        ("chaos", "wall time"): _chaos_s(emulator, extent.chaos_jobs),
    }


def _chaos_s(emulator: Path, num_jobs: int) -> float:
    """Return the seconds of a chaos run. Raises CalledProcessError for a broken promise."""
    command = (sys.executable, "-m", "pixpod_bench.emulator", "chaos", "--jobs", str(num_jobs))
    done = subprocess.run(  # noqa: S603
        command, env=own_environ(emulator), check=True, stdout=subprocess.PIPE, text=True
    )
    wall_s: float = json.loads(done.stdout.splitlines()[-1])["wall_s"]
    return wall_s


@contextmanager
def only_emulator(root: Path) -> Iterator[Path]:
    """Yield a directory for PYTHONPATH with the emulator of a checkout and nothing else of it."""
    with tempfile.TemporaryDirectory() as directory:
        package = "runpod_emulator"
        Path(directory, package).symlink_to(root.absolute() / "src" / package)
        yield Path(directory)
