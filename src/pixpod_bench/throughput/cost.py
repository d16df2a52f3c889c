"""(e) What replies say that jobs cost, beside what the platform bills for the same jobs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixpod import pricing
from pixpod.pricing import WorkerLife
from pixpod_bench.throughput.endpoints import our_endpoint, running_platform
from pixpod_bench.throughput.workload import mixed_jobs
from runpod_emulator.settings import DEFAULT_GPU
from runpod_emulator.workers.billing import load_prices

IDLE_TIMEOUT_S = 5.0
"""The platform's default: so long is a worker paid for after its last job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Seconds of the card. `shares_s` is the sum of all jobs' `cost.gpu_ms`; the platform bills
    start, run and idle, rounded up. `run_s` is while a worker had any job.
    """

    side: str
    jobs: int
    shares_s: float
    run_s: float
    start_s: float
    idle_s: float
    billed_s: int
    usd: pricing.Comparison

    @property
    def is_covered(self) -> bool:
        """Shares are parts of the time in which the worker had jobs, so never more."""
        return self.shares_s <= self.run_s

    @property
    def share_of_run(self) -> float:
        return self.shares_s / self.run_s

    @property
    def share_of_bill(self) -> float:
        return self.shares_s / self.billed_s


def compare(
    side: str, device_ms: Sequence[float], lives: Sequence[WorkerLife], *, is_active: bool
) -> Comparison:
    """`device_ms` are of every job that these workers have had; `is_active` is for workers that
    are always there, which have a price of their own.
    """
    usd_per_second = load_prices().usd_per_second(DEFAULT_GPU, is_active=is_active)
    assert usd_per_second is not None, "the emulator's default card has a price"
    return Comparison(
        side=side,
        jobs=len(device_ms),
        shares_s=sum(device_ms) / 1e3,
        run_s=sum(life.run_s for life in lives),
        start_s=sum(life.start_s for life in lives),
        idle_s=sum(life.idle_s for life in lives),
        billed_s=sum(life.billed_s for life in lives),
        usd=pricing.compare(device_ms, lives, usd_per_second),
    )


def measure_cost(
    num_jobs: int, held: int, on_run: Callable[[], object] = lambda: None
) -> Comparison:
    """A burst on an endpoint that is scaled to zero before and after: cold start, work, idle."""
    endpoint = our_endpoint(
        "from-zero", held, is_batching=True, workers_min=0, idle_timeout_s=IDLE_TIMEOUT_S
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        running_platform([endpoint], Path(folder)) as platform,
    ):
        answers = platform.run(endpoint.id, mixed_jobs(num_jobs))
        platform.wait_for_end(endpoint.id)
        lives = platform.lives(endpoint.id)
    on_run()
    device_ms = [answer.device_ms for answer in answers if answer.device_ms is not None]
    return compare("a burst, from no worker to none", device_ms, lives, is_active=False)
