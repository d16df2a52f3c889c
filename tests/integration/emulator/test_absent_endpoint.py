"""Jobs of an endpoint that this start of the emulator was not told of."""

import asyncio
import time

from support.jobs import WORKER, make_job

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.emulator import Emulator
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import JobStatus
from runpod_emulator.testing import settings_for

LIMIT_S = 30


def test_job_that_ran_when_the_emulator_ended_waits_for_its_endpoint(handlers, tmp_path):
    """Its execution timeout is long over, yet nobody has run it since."""
    settings = settings_for(handlers / "silent.py", tmp_path, behaviour=Behaviour())
    now = time.time()
    job = make_job(endpoint_id="absent", created_at=now - 3600)
    running = lifecycle.take(job, WORKER, now - 3500)
    assert running is not None

    async def scenario():
        emulator = Emulator(settings)
        await emulator.start()
        try:
            await emulator.gateway.store.add(running, b"{}")
            async with asyncio.timeout(LIMIT_S):
                while (await emulator.gateway.store.get(job.id)) == running:
                    await asyncio.sleep(0.01)
            return await emulator.gateway.store.get(job.id)
        finally:
            await emulator.stop()

    kept = asyncio.run(scenario())
    assert kept is not None, "it was thrown away"
    assert (kept.status, kept.retries) == (JobStatus.IN_QUEUE, 0)
    assert kept.history[-1].reason == "its endpoint is absent"
