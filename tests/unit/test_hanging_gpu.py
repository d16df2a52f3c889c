"""An engine whose device never returns from a job: the host is reported, unless it is a CPU."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from support.factories import make_request
from support.hanging_gpu import HangingModel, LoadedAlready

from pixpod.engine.engine import DiffusionEngine
from pixpod.errors import WorkerError
from pixpod.timeline import BootTimeline

LIMIT_S = 0.05
LONG_S = 10.0


class Host:
    """An engine on a device of this name, and what it reported."""

    def __init__(self, device_name: str) -> None:
        self.model = HangingModel()
        self.reports: list[WorkerError] = []
        self.has_reported = threading.Event()
        loader: Any = LoadedAlready(self.model, device_name)
        self.engine = DiffusionEngine(
            models={},
            loader=loader,
            timeline=BootTimeline(time.perf_counter),
            preload=False,
            warmup_sizes=(),
            is_batching=True,
            on_host_fault=self._report,
            return_limit_s=LIMIT_S,
        )

    def _report(self, error: WorkerError) -> None:
        self.reports.append(error)
        self.has_reported.set()

    async def give_up_a_job(self) -> None:
        job = asyncio.create_task(self.engine.generate(make_request()))
        assert await asyncio.to_thread(self.model.has_begun.wait, LONG_S)
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await job


@pytest.fixture
def host_of():
    hosts = []

    def make(device_name):
        hosts.append(host := Host(device_name))
        return host

    yield make
    for host in hosts:
        host.model.may_return.set()
        host.engine.stop()


def test_gpu_that_hangs_is_reported(host_of):
    host = host_of("NVIDIA H200")
    asyncio.run(host.give_up_a_job())
    assert host.has_reported.wait(LONG_S)
    (error,) = host.reports
    assert str(error).startswith("device_unavailable: the GPU has not returned")


def test_gpu_whose_job_is_awaited_is_not(host_of):
    host = host_of("NVIDIA H200")

    async def wait() -> None:
        job = asyncio.create_task(host.engine.generate(make_request()))
        await asyncio.wait({job}, timeout=4 * LIMIT_S)
        assert not host.reports
        job.cancel()
        await asyncio.wait({job})

    asyncio.run(wait())


def test_cpu_only_takes_long(host_of):
    host = host_of("cpu")
    asyncio.run(host.give_up_a_job())
    assert not host.has_reported.wait(4 * LIMIT_S)
