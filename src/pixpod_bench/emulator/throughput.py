"""Measures jobs per second through the emulator against the maximum of the SDK's worker.

Clients run in this process, the server and each worker in one of its own.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from pixpod_bench.emulator.load import Client, client_of, running, submit_and_look, submit_and_wait
from pixpod_bench.emulator.processes import (
    API_KEY,
    ENDPOINT_ID,
    HANDLER,
    NUM_CORES,
    STUB_WORKER,
    Server,
    machine_busy_s,
    own_busy_s,
    running_emulator,
    running_stub_platform,
)

LOOK_S = 0.02
WARM_UP_ROUNDS = 2
JOBS_PER_SLOT = 3
"""Jobs for each slot: one runs, one waits, and one has ended but is seen up to 1 s later."""

JUDGED_CELL = (4, 32)
LEAST_RATIO = 0.7

LIMIT_S = 600.0
NUM_ASKING = 16
"""Clients that load the API, each with one request at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate of jobs. `server_load` is the server's share of one core, `machine_load` that of all
    processes of all cores.
    """

    jobs_per_s: float
    cpu_ms_per_job: float
    server_load: float
    machine_load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Rates of real SDK workers, each with so many jobs at once: with the emulator, and the stub.

    `others_load` is the share of all cores that other programs took meanwhile.
    """

    num_workers: int
    concurrency: int
    emulator: Rate
    ceiling: Rate
    others_load: float

    @property
    def ratio(self) -> float:
        return self.emulator.jobs_per_s / self.ceiling.jobs_per_s

    @property
    def is_too_slow(self) -> bool:
        """Return False for small cells, whose speed the SDK's own sleeps limit."""
        is_judged = (self.num_workers, self.concurrency) == JUDGED_CELL
        return is_judged and self.ratio < LEAST_RATIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of latency in milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load of the API. `requests_per_s` counts `/run` and `/status`, one each for every job."""

    requests_per_s: float
    run: Latency
    status: Latency
    jobs: Rate


async def measure_cell(num_workers: int, concurrency: int, num_rounds: int) -> Cell:
    """Measure `num_rounds` jobs for each that can run at once, after two rounds to warm up."""
    others = _OthersLoad()
    ceiling = await _measure_ceiling(num_workers, concurrency, num_rounds)
    emulator = await measure_emulator(num_workers, concurrency, num_rounds)
    return Cell(
        num_workers=num_workers,
        concurrency=concurrency,
        emulator=emulator,
        ceiling=ceiling,
        others_load=others.so_far(),
    )


async def _measure_ceiling(num_workers: int, concurrency: int, num_rounds: int) -> Rate:
    num_slots = num_workers * concurrency
    with tempfile.TemporaryDirectory() as directory:
        async with (
            running_stub_platform(num_workers, concurrency, Path(directory)) as server,
            client_of(server.url, ENDPOINT_ID, API_KEY) as client,
        ):
            await _until(client.ready_workers, num_workers)
            return await _measure(
                server, client.completed, WARM_UP_ROUNDS * num_slots, num_rounds * num_slots
            )


async def measure_emulator(
    num_workers: int, concurrency: int, num_rounds: int, source: Path | None = None
) -> Rate:
    """Measure one cell on the emulator only; `source` is as in `running_emulator`."""
    num_slots = num_workers * concurrency
    with tempfile.TemporaryDirectory() as directory:
        async with (
            running_emulator(HANDLER, num_workers, concurrency, Path(directory), source) as server,
            client_of(server.url, ENDPOINT_ID, API_KEY) as client,
        ):
            await _until(client.ready_workers, num_workers)
            async with running(submit_and_wait(client) for _ in range(JOBS_PER_SLOT * num_slots)):
                return await _measure(
                    server,
                    client.seen_completed,
                    WARM_UP_ROUNDS * num_slots,
                    num_rounds * num_slots,
                )


async def measure_idle(seconds: float, source: Path | None = None) -> float:
    """Return the share of a core that the emulator needs with one SDK worker and no job."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            running_emulator(HANDLER, 1, 1, Path(directory), source) as server,
            client_of(server.url, ENDPOINT_ID, API_KEY) as client,
        ):
            await _until(client.ready_workers, 1)
            await asyncio.sleep(1)
            before_s = server.cpu_s()
            await asyncio.sleep(seconds)
            return (server.cpu_s() - before_s) / seconds


async def measure_loads(seconds: float, source: Path | None = None) -> tuple[Load, Load]:
    """Measure the API under its maximum load, then under half of that, with one stub worker."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            running_emulator(STUB_WORKER, 1, 1, Path(directory), source) as server,
            client_of(server.url, ENDPOINT_ID, API_KEY) as client,
        ):
            await _until(client.ready_workers, 1)
            full = await _measure_load(server, client, seconds, 0.0)
            half_interval_s = 2 * 2 * NUM_ASKING / full.requests_per_s
            return full, await _measure_load(server, client, seconds, half_interval_s)


async def _measure_load(server: Server, client: Client, seconds: float, interval_s: float) -> Load:
    asking = (
        submit_and_look(client, interval_s, interval_s * number / NUM_ASKING)
        for number in range(NUM_ASKING)
    )
    async with running(asking):
        await asyncio.sleep(1)
        client.forget()
        clock = _Clock(server)
        before = await client.completed()
        await asyncio.sleep(seconds)
        num_requests = len(client.run_latencies_s) + len(client.status_latencies_s)
        jobs = clock.rate(await client.completed() - before)
        return Load(
            requests_per_s=num_requests / seconds,
            run=_latency(client.run_latencies_s),
            status=_latency(client.status_latencies_s),
            jobs=jobs,
        )


async def _measure(
    server: Server, count: Callable[[], Awaitable[int]], num_warm_up: int, num_jobs: int
) -> Rate:
    """Measure the rate from the end of `num_warm_up` jobs to the end of `num_jobs` more."""
    first = await _until(count, await count() + num_warm_up)
    clock = _Clock(server)
    last = await _until(count, first + num_jobs)
    return clock.rate(last - first)


async def _until(count: Callable[[], Awaitable[int]], number: int) -> int:
    """Wait for a count of at least `number`, and return it. Raises TimeoutError."""
    async with asyncio.timeout(LIMIT_S):
        while (counted := await count()) < number:
            await asyncio.sleep(LOOK_S)
    return counted


class _Clock:
    """Counts time, and the CPU time of a server and of the machine, from now on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started = (perf_counter(), server.cpu_s(), machine_busy_s())

    def rate(self, num_jobs: int) -> Rate:
        now = (perf_counter(), self._server.cpu_s(), machine_busy_s())
        wall_s, cpu_s, busy_s = (
            after - before for after, before in zip(now, self._started, strict=True)
        )
        return Rate(
            jobs_per_s=num_jobs / wall_s,
            cpu_ms_per_job=1000 * cpu_s / num_jobs,
            machine_load=busy_s / wall_s / NUM_CORES,
            server_load=cpu_s / wall_s,
        )


class _OthersLoad:
    """Measures other programs' share of all cores since the start. Read it after our own processes
    have ended.
    """

    def __init__(self) -> None:
        self._started = (perf_counter(), own_busy_s(), machine_busy_s())

    def so_far(self) -> float:
        now = (perf_counter(), own_busy_s(), machine_busy_s())
        wall_s, own_s, busy_s = (
            after - before for after, before in zip(now, self._started, strict=True)
        )
        return max(0.0, busy_s - own_s) / wall_s / NUM_CORES


def _latency(seconds: list[float]) -> Latency:
    percentiles = statistics.quantiles(seconds, n=100)
    return Latency(p50_ms=1000 * percentiles[49], p99_ms=1000 * percentiles[98])
