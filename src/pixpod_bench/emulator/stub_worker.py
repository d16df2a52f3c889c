"""A worker without the SDK and its sleeps: takes batches and posts results as fast as it can."""

import asyncio
import os
from typing import Any

import aiohttp

BATCH_SIZE = 32
PING_S = 5.0


async def work() -> None:
    """Run until the process is ended."""
    worker_id = os.environ["RUNPOD_POD_ID"]
    take = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", worker_id)
    take_batch = take.replace("/job-take/", "/job-take-batch/") + f"&batch_size={BATCH_SIZE}"
    done = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", worker_id)
    ping = os.environ["RUNPOD_WEBHOOK_PING"].replace("$RUNPOD_POD_ID", worker_id)
    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        pings = asyncio.create_task(_ping_on(session, ping))
        while not pings.done():
            async with session.get(take_batch) as reply:
                jobs = await reply.json() if reply.status == 200 else []
            await asyncio.gather(*(_finish(session, done, job) for job in jobs))


async def _finish(session: aiohttp.ClientSession, done: str, job: dict[str, Any]) -> None:
    url = done.replace("$ID", job["id"]) + "&isStream=false"
    async with session.post(url, json={"output": job["input"]}) as reply:
        await reply.read()


async def _ping_on(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        async with session.get(url) as reply:
            await reply.read()
        await asyncio.sleep(PING_S)


if __name__ == "__main__":
    asyncio.run(work())
