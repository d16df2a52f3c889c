"""Clients of the API: some wait for their jobs, others poll as fast as they can."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

POLL_S = 1.0
"""The polling interval of the SDK's own client."""


@dataclass(slots=True, kw_only=True)
class Client:
    """A client of one endpoint, which several tasks share, with the counts of all of them.

    `num_completed` counts jobs that a task has seen COMPLETED.
    """

    session: aiohttp.ClientSession
    base_url: str
    num_completed: int = 0
    run_latencies_s: list[float] = field(default_factory=list)
    status_latencies_s: list[float] = field(default_factory=list)

    async def run(self, number: int = 0) -> str:
        """Submit a job; return its id."""
        started_at = time.perf_counter()
        async with self.session.post(
            f"{self.base_url}/run", json={"input": {"number": number}}
        ) as reply:
            job_id: str = (await reply.json())["id"]
        self.run_latencies_s.append(time.perf_counter() - started_at)
        return job_id

    async def status(self, job_id: str) -> str:
        started_at = time.perf_counter()
        async with self.session.get(f"{self.base_url}/status/{job_id}") as reply:
            status: str = (await reply.json())["status"]
        self.status_latencies_s.append(time.perf_counter() - started_at)
        return status

    def forget(self) -> None:
        """Reset the counts, for a new measurement."""
        self.run_latencies_s.clear()
        self.status_latencies_s.clear()

    async def ready_workers(self) -> int:
        """Return the workers that have polled for jobs."""
        workers = (await self._health())["workers"]
        return workers["idle"] + workers["running"]

    async def completed(self) -> int:
        """Return the number of jobs that the endpoint has completed, seen by a client or not."""
        return (await self._health())["jobs"]["completed"]

    async def seen_completed(self) -> int:
        return self.num_completed

    async def _health(self) -> dict[str, dict[str, int]]:
        async with self.session.get(f"{self.base_url}/health") as reply:
            health: dict[str, dict[str, int]] = await reply.json()
        return health


@asynccontextmanager
async def client_of(url: str, endpoint_id: str, api_key: str) -> AsyncIterator[Client]:
    """Yield a client of an endpoint, which raises for any status but 2xx."""
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {api_key}"},
        connector=aiohttp.TCPConnector(limit=0),
        raise_for_status=True,
    ) as session:
        yield Client(session=session, base_url=f"{url}/v2/{endpoint_id}")


@asynccontextmanager
async def running(clients: Iterable[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run all clients during the block; raise an error of one of them."""
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def submit_and_wait(client: Client) -> None:
    """Submit one job after the other, each until it is COMPLETED, until cancelled."""
    while True:
        job_id = await client.run()
        while await client.status(job_id) != "COMPLETED":
            await asyncio.sleep(POLL_S)
        client.num_completed += 1


async def submit_and_look(
    client: Client, interval_s: float = 0.0, first_after_s: float = 0.0
) -> None:
    """Send a `/run` and its `/status` in each interval, or as fast as possible, until cancelled.

    A client that is late sends at once and does not catch up.
    """
    await asyncio.sleep(first_after_s)
    while True:
        next_at = time.perf_counter() + interval_s
        await client.status(await client.run())
        await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
