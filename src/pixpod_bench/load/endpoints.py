"""Jobs through an emulator and workers of the real SDK; how each went, and what is billed."""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixpod.pricing import WorkerLife
from pixpod_bench.emulator.load import Client, client_of
from pixpod_bench.throughput.deployment import TINY_WEIGHTS, environ
from pixpod_bench.throughput.pixels import decode
from pixpod_bench.throughput.workload import MODELS, JobFailed, TinyJob
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.settings import EmulatorSettings, EndpointSettings
from runpod_emulator.testing import RunningEmulator, running_emulator

OUR_HANDLER = Path(__file__).resolve().parents[3] / "handler.py"
PLAIN_HANDLER = Path(__file__).with_name("plain_handler.py")

LIMIT_S = 600.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One job as the platform saw it, in seconds since the epoch: submitted, taken by the worker,
    ended. `device_ms` is the worker's own share of the card, None where none is told.
    """

    submitted_at: float
    taken_at: float
    ended_at: float
    device_ms: float | None
    pixels: bytes

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.submitted_at

    @property
    def held_s(self) -> float:
        return self.ended_at - self.taken_at


def plain_endpoint(name: str, concurrency: int, **more: Any) -> EndpointSettings:  # noqa: ANN401 - fields of EndpointSettings
    folders = os.pathsep.join(str(TINY_WEIGHTS / model) for model in MODELS)
    env = {"BENCH_CONCURRENCY": str(concurrency), "BENCH_FOLDERS": folders, "HF_HUB_OFFLINE": "1"}
    return _endpoint(name, PLAIN_HANDLER, env, more)


def our_endpoint(
    name: str,
    concurrency: int,
    *,
    is_batching: bool,
    **more: Any,  # noqa: ANN401 - fields of EndpointSettings
) -> EndpointSettings:
    env = environ(is_batching=is_batching, PIXPOD_MAX_HELD_JOBS=str(concurrency))
    return _endpoint(name, OUR_HANDLER, env, more)


def _endpoint(
    name: str, handler: Path, env: Mapping[str, str], more: Mapping[str, Any]
) -> EndpointSettings:
    """One worker, there from the start, unless `more` says otherwise."""
    fields = {"workers_min": 1, "workers_max": 1, **more}
    return EndpointSettings(
        id=name, command=(sys.executable, "-u", str(handler)), env=env, **fields
    )


class Platform:
    """An emulator that runs; its endpoints are asked one after the other."""

    def __init__(self, emulator: RunningEmulator) -> None:
        self._emulator = emulator

    def run(self, endpoint_id: str, jobs: Sequence[TinyJob]) -> list[Answer]:
        """All submitted at once; one answer for each, in their order. Raises JobFailed."""
        return asyncio.run(self._run(endpoint_id, jobs))

    def lives(self, endpoint_id: str) -> list[WorkerLife]:
        """Of all workers of the endpoint, those that have ended first."""
        state = self._emulator.state()["endpoints"][endpoint_id]
        return [WorkerLife(**worker["bill"]) for worker in (*state["retired"], *state["workers"])]

    def wait_for_end(self, endpoint_id: str) -> None:
        """Until its last worker has ended for want of jobs."""
        self._emulator.wait_until(
            lambda state: not state["endpoints"][endpoint_id]["workers"], LIMIT_S
        )

    async def _run(self, endpoint_id: str, jobs: Sequence[TinyJob]) -> list[Answer]:
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
            raise JobFailed(f"{job_id}: {document['status']}: {document.get('error')}")
        details, output = self._emulator.job(job_id), document["output"]
        taken_at = details["created_at"] + details["delay_ms"] / 1e3
        return Answer(
            submitted_at=details["created_at"],
            taken_at=taken_at,
            ended_at=taken_at + details["execution_ms"] / 1e3,
            device_ms=output["cost"]["gpu_ms"] if "cost" in output else None,
            pixels=decode(output["images"][0]["data"]),
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


async def _submit(client: Client, job: TinyJob) -> str:
    async with client.session.post(
        f"{client.base_url}/run", json={"input": job.payload()}
    ) as reply:
        job_id: str = (await reply.json())["id"]
    return job_id


async def _ended(client: Client, job_id: str) -> dict[str, Any]:
    """The job's document once it has ended. Looked at rarely: who looks takes part of a core."""
    while True:
        async with client.session.get(f"{client.base_url}/status/{job_id}") as reply:
            document: dict[str, Any] = await reply.json()
        if document["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return document
        await asyncio.sleep(LOOK_S)
