"""Runs many jobs while workers are killed and results are refused, and checks each job's end.

The emulator, its clients and the receiver of webhooks share one event loop; workers are real.
"""

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from pixpod_bench.emulator.verdict import ChaosResult, ChaosSettings
from runpod_emulator.api.gateway import Endpoint
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.emulator import Emulator
from runpod_emulator.faults import FaultAction, FaultPoint, FaultRule
from runpod_emulator.settings import EmulatorSettings, EndpointSettings

HANDLER = Path(__file__).with_name("handler.py")
ENDPOINT_ID = "chaos"
API_KEY = "for this machine only"

LOOK_S = 0.01
"""Pause between two searches for a worker to kill; an instant handler ends its jobs quickly."""


async def run_chaos(
    settings: ChaosSettings, state_dir: Path, on_progress: Callable[[int], object]
) -> ChaosResult:
    """Run the jobs. `on_progress` gets the number of ended ones.

    Raises TimeoutError after `limit_s`.
    """
    started_at = time.monotonic()
    async with (
        asyncio.timeout(settings.limit_s),
        _receiver() as receiver,
        _emulator(settings, state_dir) as emulator,
    ):
        job_ids = await _submit(settings.num_jobs, emulator, receiver)
        killed = await _kill_until_done(settings, emulator, on_progress)
        while await emulator.gateway.store.webhooks_due(math.inf, 1):
            await asyncio.sleep(LOOK_S)
        found = [await emulator.gateway.store.get(job_id) for job_id in job_ids]
        (refusals,) = emulator.faults.rules
        return ChaosResult(
            settings=settings,
            jobs=[job for job in found if job is not None],
            deliveries=receiver.counts,
            killed=killed,
            num_refused_posts=refusals.hits,
            wall_s=time.monotonic() - started_at,
        )


@dataclass(slots=True)
class _Receiver:
    """Counts the webhooks that reach it, by job."""

    url: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    async def receive(self, request: web.Request) -> web.Response:
        self.counts[(await request.json())["id"]] += 1
        return web.Response()


@asynccontextmanager
async def _receiver() -> AsyncIterator[_Receiver]:
    receiver = _Receiver()
    app = web.Application()
    app.router.add_post("/webhook", receiver.receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhook"
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _emulator(settings: ChaosSettings, state_dir: Path) -> AsyncIterator[Emulator]:
    endpoint = EndpointSettings(
        id=ENDPOINT_ID,
        command=(sys.executable, "-u", str(HANDLER)),
        workers_min=settings.num_workers,
        workers_max=settings.num_workers,
        env={"BENCH_CONCURRENCY": str(settings.concurrency)},
    )
    behaviour = Behaviour(
        ping_interval_s=1,
        heartbeat_timeout_s=3,
        max_retries=settings.max_retries,
        webhook_retry_interval_s=1,
        queue_limit=False,
    )
    emulator = Emulator(
        EmulatorSettings(
            endpoints=(endpoint,),
            api_key=API_KEY,
            state_dir=state_dir,
            database=state_dir / "jobs.db",
            behaviour=behaviour,
            rate_limits=False,
            echo_logs=False,
            seed=settings.seed,
        )
    )
    emulator.faults.add(
        FaultRule(
            id="refused result",
            at=FaultPoint.JOB_DONE,
            action=FaultAction.STATUS,
            value=503,
            probability=settings.refusal_rate,
        )
    )
    await emulator.start()
    try:
        yield emulator
    finally:
        await emulator.stop()


async def _submit(num_jobs: int, emulator: Emulator, receiver: _Receiver) -> list[str]:
    url = f"{emulator.base_url}/{ENDPOINT_ID}/run"
    job_ids = []
    async with aiohttp.ClientSession(headers={"Authorization": API_KEY}) as session:
        for number in range(num_jobs):
            body = {"input": {"number": number}, "webhook": receiver.url}
            async with session.post(url, json=body, raise_for_status=True) as reply:
                job_ids.append((await reply.json())["id"])
    return job_ids


async def _kill_until_done(
    settings: ChaosSettings, emulator: Emulator, on_progress: Callable[[int], object]
) -> list[str]:
    """Kill workers with SIGKILL while they have jobs; return the ids of the killed ones."""
    chance = random.Random(settings.seed)  # noqa: S311 (for repeatable runs, not for secrets)
    endpoint = emulator.gateway.endpoints[ENDPOINT_ID]
    killed: list[str] = []
    num_ended = 0
    while num_ended < settings.num_jobs:
        counts = await emulator.gateway.store.counts(ENDPOINT_ID)
        num_ended = sum(count for status, count in counts.items() if status.is_final)
        on_progress(num_ended)
        if num_ended >= (len(killed) + 1) * settings.kill_every:
            killed += _kill_one(endpoint, chance, killed)
        await asyncio.sleep(LOOK_S)
    return killed


def _kill_one(endpoint: Endpoint, chance: random.Random, killed: Sequence[str]) -> list[str]:
    """Kill a worker that has a job, without the emulator. Return its id, if there is one."""
    busy = {
        worker.id: worker.process.pid
        for worker in endpoint.fleet.workers.values()
        if worker.process is not None and worker.jobs and worker.id not in killed
    }
    if not busy:
        return []
    victim = chance.choice(sorted(busy))
    os.killpg(busy[victim], signal.SIGKILL)
    return [victim]
