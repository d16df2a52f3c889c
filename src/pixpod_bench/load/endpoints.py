"""Runs jobs through an emulator and workers of the real SDK."""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixpod_bench.emulator.load import Client, client_of
from pixpod_bench.load.jobs import MODELS, WEIGHTS, Payload, worker_environ
from pixpod_bench.load.sides import SideFailed
from pixpod_bench.machine import ROOT
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.settings import EmulatorSettings, EndpointSettings
from runpod_emulator.testing import RunningEmulator, running_emulator

OUR_HANDLER = ROOT / "handler.py"
PLAIN_HANDLER = Path(__file__).with_name("plain_handler.py")

LIMIT_S = 600.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One job as the platform saw it, in seconds since the epoch; `image` is base64."""

    submitted_at: float
    ended_at: float
    image: str

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.submitted_at


def plain_endpoint(endpoint_id: str, concurrency: int) -> EndpointSettings:
    folders = os.pathsep.join(str(WEIGHTS / "tiny" / model) for model in MODELS)
    env = {"BENCH_CONCURRENCY": str(concurrency), "BENCH_FOLDERS": folders, "HF_HUB_OFFLINE": "1"}
    return _endpoint(endpoint_id, PLAIN_HANDLER, env)


def our_endpoint(endpoint_id: str, concurrency: int, *, is_batching: bool) -> EndpointSettings:
    env = worker_environ(
        PIXPOD_WEIGHTS_DIR=str(WEIGHTS),
        PIXPOD_BATCHING=str(is_batching).lower(),
        PIXPOD_MAX_CONCURRENCY=str(concurrency),
    )
    return _endpoint(endpoint_id, OUR_HANDLER, env)


def _endpoint(endpoint_id: str, handler: Path, env: Mapping[str, str]) -> EndpointSettings:
    """Return an endpoint with one worker, which starts at once."""
    return EndpointSettings(
        id=endpoint_id,
        command=(sys.executable, "-u", str(handler)),
        env=dict(env),
        workers_min=1,
        workers_max=1,
    )


class Platform:
    """A running emulator; its endpoints get jobs one after the other."""

    def __init__(self, emulator: RunningEmulator) -> None:
        self._emulator = emulator

    def run(self, endpoint_id: str, jobs: Sequence[Payload]) -> list[Answer]:
        """Submit all jobs at once; return one answer for each, in their order.

        Raises SideFailed.
        """
        return asyncio.run(self._run(endpoint_id, jobs))

    async def _run(self, endpoint_id: str, jobs: Sequence[Payload]) -> list[Answer]:
        emulator = self._emulator
        async with client_of(emulator.url, endpoint_id, emulator.api_key) as client:
            ids = await asyncio.gather(*(_submit(client, job) for job in jobs))
            async with asyncio.timeout(LIMIT_S):
                documents = [await _ended(client, job_id) for job_id in ids]
        return [
            self._answer(job_id, document) for job_id, document in zip(ids, documents, strict=True)
        ]

    def _answer(self, job_id: str, document: Mapping[str, Any]) -> Answer:
        if document["status"] != "COMPLETED":
            raise SideFailed(f"{job_id}: {document['status']}: {document.get('error')}")
        details = self._emulator.job(job_id)
        waited_ms = details["delay_ms"] + details["execution_ms"]
        return Answer(
            submitted_at=details["created_at"],
            ended_at=details["created_at"] + waited_ms / 1e3,
            image=document["output"]["images"][0]["data"],
        )


@contextmanager
def running_platform(endpoints: Sequence[EndpointSettings], state_dir: Path) -> Iterator[Platform]:
    settings = EmulatorSettings(
        endpoints=tuple(endpoints),
        api_key="for-this-machine-only",
        state_dir=state_dir,
        database=state_dir / "jobs.db",
        behaviour=Behaviour(queue_limit=False),
        rate_limits=False,
        echo_logs=False,
    )
    with running_emulator(settings) as emulator:
        yield Platform(emulator)


async def _submit(client: Client, job: Payload) -> str:
    async with client.session.post(f"{client.base_url}/run", json={"input": job}) as reply:
        job_id: str = (await reply.json())["id"]
    return job_id


async def _ended(client: Client, job_id: str) -> dict[str, Any]:
    """Return the job's document once it has ended; poll rarely, since polling takes CPU time."""
    while True:
        async with client.session.get(f"{client.base_url}/status/{job_id}") as reply:
            document: dict[str, Any] = await reply.json()
        if document["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return document
        await asyncio.sleep(POLL_S)
