"""The client API of an endpoint: run, runsync, status, stream, cancel, retry, purge, health.

Routes only: they check key, size and rate, translate JSON and leave every decision to the queue.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from runpod_emulator.api import wire
from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.fault_injection import answer_with_faults
from runpod_emulator.api.gateway import Endpoint, Gateway
from runpod_emulator.api.limits import Operation, RateLimited
from runpod_emulator.faults import FaultPoint
from runpod_emulator.hazards import HazardKind, hazards_of_input
from runpod_emulator.jobs.job import Job, JobStatus
from runpod_emulator.jobs.queue import Submission
from runpod_emulator.workers.state import WorkerState

RUNSYNC_WAIT_MS = (1_000, 90_000, 300_000)
STATUS_SYNC_WAIT_MS = (1_000, 90_000, 90_000)
"""Least, default and greatest value of `?wait=`; values outside are clamped."""

NUM_REQUESTS_LISTED = 100

EndpointAnswer = Callable[[web.Request, Endpoint], Awaitable[web.StreamResponse]]


class ClientApi:
    """The client routes below `/v2/{endpoint}`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; status, status-sync and stream have GET and POST: SDKs use either."""
        get = functools.partial(web.get, allow_head=False)  # HEAD would drain streams
        both = (get, web.post)
        table = (
            ("/run", Operation.RUN, self.run, (web.post,)),
            ("/runsync", Operation.RUNSYNC, self.runsync, (web.post,)),
            ("/status/{job}", Operation.STATUS, self.status, both),
            ("/status-sync/{job}", Operation.STATUS_SYNC, self.status_sync, both),
            ("/stream/{job}", Operation.STREAM, self.stream, both),
            ("/cancel/{job}", Operation.CANCEL, self.cancel, (web.post,)),
            ("/retry/{job}", Operation.RETRY, self.retry, (web.post,)),
            ("/purge-queue", Operation.PURGE_QUEUE, self.purge_queue, (web.post,)),
            ("/health", Operation.HEALTH, self.health, (get,)),
            ("/requests", Operation.REQUESTS, self.requests, (get,)),
            ("/metrics", Operation.HEALTH, self.metrics, (get,)),
        )
        return [
            method("/v2/{endpoint}" + path, self._guarded(operation, answer))
            for path, operation, answer, methods in table
            for method in methods
        ]

    async def run(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        job = await self._submit(request, endpoint, is_sync=False)
        return _json(wire.acknowledgement(job))

    async def runsync(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        wait_s = _wait_s(request, RUNSYNC_WAIT_MS)
        job = await self._submit(request, endpoint, is_sync=True)
        return await self._status(endpoint, await endpoint.queue.wait_final(job.id, wait_s))

    async def status(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        job = await endpoint.queue.get(request.match_info["job"])
        if job is not None and "ttl" in request.query:
            ttl_s = _milliseconds(request, "ttl", 0) / 1000
            await endpoint.queue.set_ttl(job.id, ttl_s)
        return await self._status(endpoint, job)

    async def status_sync(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        wait_s = _wait_s(request, STATUS_SYNC_WAIT_MS)
        job_id = request.match_info["job"]
        return await self._status(endpoint, await endpoint.queue.wait_final(job_id, wait_s))

    async def stream(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """Return the items since the last call, after waiting for an item or the end of the job."""
        is_wait_given = "wait" in request.query
        hold_s = self._gateway.behaviour.stream_hold_s
        wait_s = _wait_s(request, STATUS_SYNC_WAIT_MS) if is_wait_given else hold_s
        deadline = self._gateway.clock() + wait_s
        while True:
            job = self._found(await endpoint.queue.get(request.match_info["job"]))
            chunks = list(await self._gateway.store.pop_chunks(job.id))
            left_s = deadline - self._gateway.clock()
            if chunks or job.status.is_final or left_s <= 0:
                break
            await endpoint.queue.wait(job.id, left_s)
        if job.status is JobStatus.CANCELLED and not chunks:
            self._report(HazardKind.ENDLESS_STREAM, endpoint, job.id)
        return _json(wire.stream_object(job, chunks))

    async def cancel(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """Cancel a job, and return its state; a job that has ended already is not changed."""
        job_id = request.match_info["job"]
        job = await endpoint.queue.cancel(job_id) or await endpoint.queue.get(job_id)
        return _json(wire.acknowledgement(self._found(job)))

    async def retry(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        job = self._found(await endpoint.queue.get(request.match_info["job"]))
        retried = await endpoint.queue.retry(job.id)
        if retried is None:
            raise ApiError(400, f"status: expected FAILED or TIMED_OUT, got {job.status}")
        if retried.is_s3_config_deleted:
            self._report(HazardKind.RETRY_WITHOUT_S3_CONFIG, endpoint, job.id)
        return _json(wire.acknowledgement(retried))

    async def purge_queue(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        removed = await endpoint.queue.purge()
        return web.json_response({"removed": removed, "status": "completed"})

    async def health(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        counts = await self._gateway.store.counts(endpoint.settings.id)
        tally = await self._gateway.store.tally(endpoint.settings.id)
        jobs = {
            "completed": tally.completed,
            "failed": tally.failed,
            "inProgress": counts.get(JobStatus.IN_PROGRESS, 0),
            "inQueue": counts.get(JobStatus.IN_QUEUE, 0),
            "retried": tally.retried,
        }
        return web.json_response({"jobs": jobs, "workers": self._worker_counts(endpoint)})

    async def requests(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """Return the last jobs. The body is a guess: the platform has the route undocumented."""
        jobs = await self._gateway.store.recent(endpoint.settings.id, NUM_REQUESTS_LISTED)
        listed = b",".join(wire.status_object(job, None) for job in jobs if not job.is_hidden)
        return _json(b'{"requests":[' + listed + b"]}")

    async def metrics(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """Return the ready workers in the form that RunPod's Flash reads."""
        is_ready = (WorkerState.IDLE, WorkerState.RUNNING)
        ready = [each.id for each in endpoint.fleet.workers.values() if each.state in is_ready]
        workers = self._worker_counts(endpoint)
        return web.json_response({"readyWorkers": ready, "workers": workers})

    def _guarded(
        self, operation: Operation, answer: EndpointAnswer
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a handler that checks key, endpoint and rate, and applies faults."""

        async def admitted(request: web.Request) -> web.StreamResponse:
            endpoint = self._gateway.endpoint_of(request)
            try:
                with self._gateway.limiter.admit(endpoint.settings.id, operation):
                    return await answer(request, endpoint)
            except RateLimited as error:
                raise ApiError(429, str(error), retry_after_s=error.retry_after_s) from error

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._gateway.check_key(request)
            point = FaultPoint(operation)
            return await answer_with_faults(self._gateway.faults, point, request, admitted)

        return guarded

    async def _submit(self, request: web.Request, endpoint: Endpoint, *, is_sync: bool) -> Job:
        if self._gateway.draining.is_set():
            raise ApiError(503, "the emulator is about to end and takes no further job")
        behaviour, settings = self._gateway.behaviour, endpoint.settings
        most = behaviour.max_runsync_bytes if is_sync else behaviour.max_run_bytes
        raw = await self._body(request, most)
        requested = wire.parse_run(raw)
        policy = wire.policy_of(requested.policy, settings, behaviour)
        operation = Operation.RUNSYNC if is_sync else Operation.RUN
        num_queued = await self._gateway.store.num_queued(settings.id)
        self._gateway.limiter.check_queue(operation, settings, num_queued)
        job = await endpoint.queue.submit(
            Submission(
                payload=wire.to_json(requested.input),
                policy=policy,
                is_sync=is_sync,
                webhook_url=requested.webhook,
                s3_config=json.dumps(requested.s3Config) if requested.s3Config else None,
            )
        )
        for kind in hazards_of_input(requested.input):
            self._report(kind, endpoint, job.id)
        return job

    async def _body(self, request: web.Request, most: int) -> bytes:
        """Return a request's body; refuse a larger one by its declared length before it is read."""
        declared = request.content_length or 0
        raw = b"" if declared > most else await request.read()
        if max(declared, len(raw)) > most:
            raise ApiError(
                self._gateway.behaviour.oversize_status,
                f"body: expected at most {most} bytes, got {max(declared, len(raw))}",
            )
        return raw

    async def _status(self, endpoint: Endpoint, job: Job | None) -> web.StreamResponse:
        job = self._found(job)
        return _json(wire.status_object(job, await self._gateway.store.output(job.id)))

    def _found(self, job: Job | None) -> Job:
        if job is None:
            raise ApiError(404, "job not found")
        return job

    def _worker_counts(self, endpoint: Endpoint) -> Mapping[str, int]:
        states = [worker.state for worker in endpoint.fleet.workers.values()]
        # a draining worker is still billed and at work
        running = states.count(WorkerState.RUNNING) + states.count(WorkerState.DRAINING)
        idle = states.count(WorkerState.IDLE)
        counts_running = self._gateway.behaviour.ready_counts_running
        return {
            "idle": idle,
            "initializing": states.count(WorkerState.INITIALIZING),
            "ready": idle + running if counts_running else idle,
            "running": running,
            "throttled": states.count(WorkerState.THROTTLED),
            "unhealthy": states.count(WorkerState.UNHEALTHY),
        }

    def _report(self, kind: HazardKind, endpoint: Endpoint, job_id: str) -> None:
        self._gateway.hazards.report(kind, endpoint_id=endpoint.settings.id, job_id=job_id)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _wait_s(request: web.Request, limits: tuple[int, int, int]) -> float:
    least, default, most = limits
    return min(max(_milliseconds(request, "wait", default), least), most) / 1000


def _milliseconds(request: web.Request, name: str, default: int) -> int:
    """Return a parameter in milliseconds. Raises `ApiError` 400 unless it is a whole number."""
    given = request.query.get(name, str(default))
    if not given.isdecimal() or len(given) > 15:
        raise ApiError(400, f"{name}: expected milliseconds, got {given[:40]!r}")
    return int(given)
