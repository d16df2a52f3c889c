"""The worker protocol of the `runpod` SDK: job-take, job-stop, job-done, job-stream, ping.

Routes only: they authenticate, translate JSON and leave every decision to queue and fleet.
"""

import asyncio
import hmac
from collections.abc import Sequence

from aiohttp import web

from runpod_emulator.api import wire
from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.fault_injection import Answer, answer_with_faults, drop
from runpod_emulator.api.gateway import Endpoint, Gateway, key_in
from runpod_emulator.api.wire import PostedResult, ResultKind
from runpod_emulator.behaviour import EmptyInput, LateProgress
from runpod_emulator.faults import FaultAction, FaultPoint, FaultRule
from runpod_emulator.hazards import HazardKind, hazards_of_chunk, hazards_of_result
from runpod_emulator.jobs.queue import TakenJob
from runpod_emulator.jobs.store import StoreUnusable
from runpod_emulator.wake import Wake
from runpod_emulator.workers.session import SETTLE_S, WorkerSession

DRAINING_HOLD_S = 0.5
"""Pause of a draining worker's calls, which it repeats at once until SIGTERM has reached it."""


class WorkerApi:
    """The worker routes below `/v2/{endpoint}`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._strikes: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        take = self._faulty(FaultPoint.JOB_TAKE, self.take)
        table = {
            "/job-take/{worker}": take,
            "/job-take-batch/{worker}": take,
            "/job-stop/{worker}": self._faulty(FaultPoint.JOB_STOP, self.stop),
            "/ping/{worker}": self._faulty(FaultPoint.PING, self.ping),
        }
        posts = {
            "/job-done/{worker}/{job}": self._faulty(FaultPoint.JOB_DONE, self.done),
            "/job-stream/{worker}/{job}": self._faulty(FaultPoint.JOB_STREAM, self.stream),
        }
        return [
            *(web.get("/v2/{endpoint}" + path, answer) for path, answer in table.items()),
            *(web.post("/v2/{endpoint}" + path, answer) for path, answer in posts.items()),
        ]

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Hold the poll until there is work, the worker must end, or the hold is over."""
        endpoint, worker = await self._authenticate(request)
        limit = _batch_size(request)
        self._note_poll(endpoint, worker, request)
        deadline = self._now() + self._gateway.behaviour.poll_hold_s
        work = endpoint.queue.work
        while worker.state.can_take and _is_open(request):
            next_work = work.next_event()
            if taken := await endpoint.queue.take(worker.id, limit):
                return await self._hand_out(request, endpoint, worker, taken)
            if not await self._held(work, deadline, next_work):
                return _nothing()
        await asyncio.sleep(DRAINING_HOLD_S)
        return _nothing()

    async def stop(self, request: web.Request) -> web.StreamResponse:
        _, worker = await self._authenticate(request)
        deadline = self._now() + self._gateway.behaviour.poll_hold_s
        # a closed poll would lose the notice
        while _is_open(request):
            if stops := worker.pop_stops(self._now()):
                return web.json_response({"jobsToStop": stops})
            if not worker.state.can_take:
                break
            hold_until = min(deadline, self._now() + SETTLE_S) if worker.stops else deadline
            if not await self._held(worker.wake, hold_until):
                break
        return _nothing()

    async def done(self, request: web.Request) -> web.StreamResponse:
        endpoint, worker = await self._authenticate(request)
        job_id = request.match_info["job"]
        raw = await request.read()
        posted = wire.parse_result(raw)
        if posted.kind is ResultKind.PROGRESS:
            return await self._progress(endpoint, worker, job_id, posted)
        if await self._strike_result(endpoint, worker, job_id):
            return drop(request)
        is_too_large = len(raw) > self._gateway.behaviour.max_result_bytes
        job = await self._finish(endpoint, worker, job_id, posted, is_too_large=is_too_large)
        worker.release(job_id, self._now())
        if posted.has_failed_prestart:
            endpoint.fleet.unfit(worker, "prestart hook failed")
        self._report_result(endpoint, worker, job_id, posted, len(raw), is_late=job is None)
        if posted.must_replace_worker:
            endpoint.fleet.drain(worker, "refresh_worker")
        if is_too_large:
            status = self._gateway.behaviour.oversize_status
            raise ApiError(status, f"result of {len(raw)} bytes is too large")
        if job is None:
            return web.json_response({}, status=self._gateway.behaviour.late_result_status)
        worker.num_results += 1
        return web.json_response({})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        endpoint, worker = await self._authenticate(request)
        job_id = request.match_info["job"]
        raw = await request.read()
        chunk, behaviour = wire.parse_chunk(raw), self._gateway.behaviour
        for kind in hazards_of_chunk(len(raw), behaviour, has_nan=chunk.has_nan):
            self._report(kind, endpoint, worker, job_id)
        for piece in wire.split_chunk(chunk.body, behaviour.max_chunk_bytes):
            await endpoint.queue.add_chunk(job_id, worker.id, piece)
        return web.json_response({})

    async def ping(self, request: web.Request) -> web.StreamResponse:
        """Note a ping. The SDK goes on after any status but 429 and 5xx."""
        endpoint, worker = await self._authenticate(request)
        if worker.process is None:
            return web.json_response({})  # an orphan of a dead worker: it proves nothing
        if request.query.get("status") == "unhealthy":
            check, why = request.query.get("check"), request.query.get("reason")
            endpoint.fleet.unfit(worker, f"fitness check {check}: {why}")
        listed = request.query.get("job_id", "")
        worker.pinged(set(listed.split(",")), self._now())
        return web.json_response({})

    def _now(self) -> float:
        return self._gateway.clock()

    def _faulty(self, point: FaultPoint, answer: Answer) -> Answer:
        async def faulty(request: web.Request) -> web.StreamResponse:
            try:
                return await answer_with_faults(self._gateway.faults, point, request, answer)
            except StoreUnusable:
                await self._delay_refusal()
                raise

        return faulty

    async def _authenticate(self, request: web.Request) -> tuple[Endpoint, WorkerSession]:
        """Return the endpoint and the worker of a request.

        Raises `ApiError` 401, after a delay, for a request without the worker's own key.
        """
        endpoint = self._gateway.endpoint_of(request)
        worker = endpoint.fleet.find(request.match_info["worker"])
        if worker is None or not hmac.compare_digest(key_in(request), worker.token.encode()):
            await self._delay_refusal()
            raise ApiError(401, "not the key of this worker")
        return endpoint, worker

    async def _delay_refusal(self) -> None:
        """Wait before a refusal, because the SDK repeats a refused call at once."""
        await asyncio.sleep(self._gateway.behaviour.refusal_delay_s)

    def _note_poll(self, endpoint: Endpoint, worker: WorkerSession, request: web.Request) -> None:
        has_jobs = request.query.get("job_in_progress") == "1"
        for job_id in worker.polled(has_jobs=has_jobs, now=self._now()):
            if worker.jobs[job_id].stop_requested_at is None:
                self._report(HazardKind.LOST_RESULT, endpoint, worker, job_id)

    async def _held(self, wake: Wake, deadline: float, since: asyncio.Event | None = None) -> bool:
        """Wait for `wake`; return False once the poll's time is over."""
        left_s = deadline - self._now()
        if left_s > 0:
            await wake.wait(left_s, since)
        return left_s > 0

    async def _hand_out(
        self,
        request: web.Request,
        endpoint: Endpoint,
        worker: WorkerSession,
        taken: Sequence[TakenJob],
    ) -> web.StreamResponse:
        """Write the jobs; requeue them if the connection is closed, as no worker has them then."""
        rendered = [self._render(worker, each) for each in taken]
        is_batch = "/job-take-batch/" in request.path
        body = b"[" + b",".join(rendered) + b"]" if is_batch else rendered[0]
        response = web.Response(body=body, content_type="application/json")
        # a worker that has got SIGTERM meanwhile would accept the jobs and drop them
        is_delivered = worker.state.can_take and await _is_written(request, response)
        for each in taken:
            if is_delivered:
                self._strike_later(endpoint, worker, each.job.id)
            elif worker.release(each.job.id, self._now()):
                await endpoint.queue.give_back(each.job.id, worker.id, "poll was gone")
        return response if is_delivered else drop(request)

    def _render(self, worker: WorkerSession, taken: TakenJob) -> bytes:
        """Return the job as the worker gets it, and note that this worker has it."""
        job = taken.job
        is_dropped = taken.payload in (b"{}", b"null")
        is_lost = is_dropped and self._gateway.behaviour.empty_input is EmptyInput.LOST
        worker.took(job.id, self._now())
        return wire.job_for_worker(job, None if is_lost else taken.payload)

    async def _progress(
        self, endpoint: Endpoint, worker: WorkerSession, job_id: str, posted: PostedResult
    ) -> web.StreamResponse:
        output = posted.output or b"null"
        if await endpoint.queue.progress(job_id, worker.id, output) is None:
            self._report(HazardKind.LATE_PROGRESS, endpoint, worker, job_id)
            if self._gateway.behaviour.late_progress is LateProgress.REOPEN:
                await endpoint.queue.reopen(job_id, worker.id, output)
        return web.json_response({})

    async def _finish(
        self,
        endpoint: Endpoint,
        worker: WorkerSession,
        job_id: str,
        posted: PostedResult,
        *,
        is_too_large: bool,
    ) -> object | None:
        """Record the result. Return None if it came too late and changed nothing."""
        if posted.error is not None and not is_too_large:
            return await endpoint.queue.fail(job_id, worker.id, posted.error, posted.output)
        # refused for its size, a job ends COMPLETED without output (#309)
        output = None if is_too_large else posted.output
        return await endpoint.queue.complete(job_id, worker.id, output)

    def _report_result(
        self,
        endpoint: Endpoint,
        worker: WorkerSession,
        job_id: str,
        posted: PostedResult,
        size_bytes: int,
        *,
        is_late: bool,
    ) -> None:
        behaviour = self._gateway.behaviour
        kinds = hazards_of_result(posted.body, size_bytes, behaviour, has_nan=posted.has_nan)
        kinds += [HazardKind.LATE_RESULT] if is_late else []
        for kind in kinds:
            self._report(kind, endpoint, worker, job_id)

    def _report(
        self, kind: HazardKind, endpoint: Endpoint, worker: WorkerSession, job_id: str
    ) -> None:
        self._gateway.hazards.report(
            kind, endpoint_id=endpoint.settings.id, worker_id=worker.id, job_id=job_id
        )

    def _faults_at(
        self, point: FaultPoint, endpoint: Endpoint, worker: WorkerSession, job_id: str
    ) -> tuple[FaultRule, ...]:
        return self._gateway.faults.select(
            point, endpoint_id=endpoint.settings.id, worker_id=worker.id, job_id=job_id
        )

    def _strike_later(self, endpoint: Endpoint, worker: WorkerSession, job_id: str) -> None:
        rules = self._faults_at(FaultPoint.JOB_TAKEN, endpoint, worker, job_id)
        if rules:
            strike = asyncio.create_task(_strike(rules, endpoint, worker))
            self._strikes.add(strike)
            strike.add_done_callback(self._strikes.discard)

    async def _strike_result(self, endpoint: Endpoint, worker: WorkerSession, job_id: str) -> bool:
        """Apply faults when a result arrives; return True if the result is lost with the worker."""
        rules = self._faults_at(FaultPoint.JOB_RESULT, endpoint, worker, job_id)
        await _strike(rules, endpoint, worker)
        return any(rule.action is FaultAction.KILL for rule in rules)


async def _strike(rules: Sequence[FaultRule], endpoint: Endpoint, worker: WorkerSession) -> None:
    for rule in rules:
        if rule.action is FaultAction.DELAY:
            await asyncio.sleep(rule.value or 0)
        else:
            endpoint.fleet.apply(rule, worker)


def _batch_size(request: web.Request) -> int:
    """Return at least 1 for any text, since the SDK repeats a failed call in a tight loop."""
    try:
        return max(1, int(float(request.query.get("batch_size", "1"))))
    except (ValueError, OverflowError):
        return 1


async def _is_written(request: web.Request, response: web.Response) -> bool:
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        return False
    return _is_open(request)


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


def _nothing() -> web.Response:
    return web.Response(status=204)
