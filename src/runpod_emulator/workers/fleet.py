"""One endpoint's workers: starts, watches, drains and replaces them.

`scaling` decides the number of workers, `watchdog` which of them must end.
"""

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.errors import EmulatorError
from runpod_emulator.faults import FaultAction, FaultPlan, FaultPoint, FaultRule
from runpod_emulator.hazards import HazardKind, HazardLog
from runpod_emulator.jobs.queue import JobQueue
from runpod_emulator.jobs.store import JobStore
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.billing import Prices
from runpod_emulator.workers.process import WorkerProcess
from runpod_emulator.workers.scaling import EndpointView, WorkerView, backoff_s, decide
from runpod_emulator.workers.session import WorkerSession
from runpod_emulator.workers.state import WorkerState
from runpod_emulator.workers.watchdog import ForgetJob, Kill, LoseJob, Verdict, verdicts

logger = logging.getLogger(__name__)

NUM_RETIRED_KEPT = 100
LOG_TAIL_LINES = 10
CLOSE_POLL_S = 0.05

SIGNAL_MEANINGS: Mapping[int, str] = {
    signal.SIGKILL: "most often out of memory",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGABRT: "a crash in native code",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTools:
    """The parts that a fleet shares with the rest of the emulator.

    `launch` starts a worker's process and raises `EmulatorError`; `clear` removes its directory.
    """

    store: JobStore
    behaviour: Behaviour
    clock: Callable[[], float]
    hazards: HazardLog
    faults: FaultPlan
    prices: Prices
    launch: Callable[[EndpointSettings, WorkerSession], Awaitable[WorkerProcess]]
    clear: Callable[[WorkerSession], None]


class Fleet:
    """The workers of one endpoint. `workers` have a place, `retired` are the last that ended.

    `is_short_of_gpus` makes every further worker THROTTLED until it is cleared.
    """

    def __init__(self, endpoint: EndpointSettings, queue: JobQueue, tools: FleetTools) -> None:
        self.endpoint = endpoint
        self.workers: dict[str, WorkerSession] = {}
        self.retired: deque[WorkerSession] = deque(maxlen=NUM_RETIRED_KEPT)
        self.num_failures = 0
        self.is_short_of_gpus = False
        self._ended_billed_s = 0
        self._ended_usd: float | None = 0.0
        self._queue = queue
        self._tools = tools
        self._behaviour = tools.behaviour
        self._last_step_at: float | None = None
        self._is_closing = False
        self._watchers: set[asyncio.Task[None]] = set()

    def find(self, worker_id: str) -> WorkerSession | None:
        """Return a worker that has a place, or one of the last that have ended."""
        found = self.workers.get(worker_id)
        return found or next((each for each in self.retired if each.id == worker_id), None)

    def billed_s(self, now: float) -> int:
        """Return whole seconds of all workers since the emulator started, ended ones included."""
        return self._ended_billed_s + sum(
            worker.meter.bill(now).billed_s for worker in self.workers.values()
        )

    def cost_usd(self, now: float) -> float | None:
        """Return the cost of the same workers; None for a GPU without a published price."""
        costs = [self._ended_usd, *(each.cost_usd(now) for each in self.workers.values())]
        known = [cost for cost in costs if cost is not None]
        return round(sum(known), 8) if len(known) == len(costs) else None

    def job_must_stop(self, worker_id: str, job_id: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.request_stop(job_id, self._tools.clock())

    def drain(self, worker: WorkerSession, reason: str, *, grace_s: float | None = None) -> None:
        """Send SIGTERM, then release the polls: the worker must not poll again in between."""
        if worker.process is None:
            self._retire(worker, reason)
            return
        if worker.state is WorkerState.DRAINING:
            return
        logger.info("worker is drained", extra={"worker": worker.id, "reason": reason})
        worker.process.terminate()
        wait_s = self._behaviour.terminate_grace_s if grace_s is None else grace_s
        worker.drain(reason, self._tools.clock() + wait_s)
        self._queue.work.notify()

    def restart(self, reason: str) -> None:
        """Drain all workers; scaling starts others, and those that crashed are tried at once."""
        self.num_failures = 0
        for worker in list(self.workers.values()):
            self.drain(worker, reason)

    def kill(self, worker: WorkerSession, reason: str, *, is_blamed: bool = False) -> None:
        """Send SIGKILL; its jobs are requeued when its process is seen to be gone.

        A worker that is to blame counts as crashed unless it has taken a job before.
        """
        worker.reason = reason
        worker.is_end_requested |= not is_blamed
        worker.is_killed = True
        if worker.state is not WorkerState.DRAINING:
            worker.state = WorkerState.UNHEALTHY
        if worker.process is not None:
            logger.warning("worker is killed", extra={"worker": worker.id, "reason": reason})
            worker.process.kill()

    def unfit(self, worker: WorkerSession, reason: str) -> None:
        """Mark a worker that has failed its own check or hook; the SDK ends it by itself."""
        worker.is_unfit = True
        worker.state = WorkerState.UNHEALTHY
        worker.reason = reason

    def apply(self, rule: FaultRule, worker: WorkerSession | None) -> None:
        """Carry out a fault that strikes a worker, or the endpoint's supply of GPUs."""
        if rule.action is FaultAction.THROTTLE:
            self.is_short_of_gpus = True
        elif worker is None or worker.process is None:
            return
        elif rule.action is FaultAction.KILL:
            self.kill(worker, "fault: kill")
        elif rule.action is FaultAction.FREEZE:
            worker.process.freeze()
        elif rule.action is FaultAction.SPOT:
            self.drain(worker, "fault: spot interruption", grace_s=rule.value or 0)

    async def tick(self) -> None:
        """Apply what is due now. Call it a few times a second."""
        for worker in list(self.workers.values()):
            for verdict in self._verdicts(worker):
                await self._carry_out(worker, verdict)
        self._free_crashed_places()
        if not self._is_closing:
            await self._scale()

    async def close(self) -> None:
        """Drain all workers; `tick` must go on meanwhile, to kill those that do not end in time."""
        self._is_closing = True
        for worker in list(self.workers.values()):
            self.drain(worker, "emulator ends")
        while self.workers:
            await asyncio.sleep(CLOSE_POLL_S)

    def _verdicts(self, worker: WorkerSession) -> list[Verdict]:
        return list(verdicts(worker, self.endpoint, self._behaviour, self._tools.clock()))

    async def _carry_out(self, worker: WorkerSession, verdict: Verdict) -> None:
        match verdict:
            case Kill():
                if verdict.hazard is not None:
                    self._report(verdict.hazard, worker, job_id=verdict.job_id)
                self.kill(worker, verdict.reason, is_blamed=verdict.is_blamed)
            case LoseJob(job_id=job_id, reason=reason):
                await self._lose(worker, job_id, reason)
            case ForgetJob(job_id=job_id):
                worker.release(job_id, self._tools.clock())

    async def _lose(self, worker: WorkerSession, job_id: str, reason: str) -> None:
        assigned = worker.jobs.get(job_id)
        if assigned is None:
            return  # its result has come since
        if not assigned.is_dropped:
            self._report(HazardKind.LOST_RESULT, worker, job_id=job_id)
        worker.release(job_id, self._tools.clock())
        await self._queue.lose(job_id, worker.id, reason)

    async def _scale(self) -> None:
        now = self._tools.clock()
        view = EndpointView(
            backlog=await self._tools.store.backlog(self.endpoint.id),
            in_progress=sum(len(worker.jobs) for worker in self.workers.values()),
            workers=tuple(
                WorkerView(id=each.id, state=each.state, idle_since=each.idle_since)
                for each in self.workers.values()
            ),
            last_step_at=self._last_step_at,
        )
        decision = decide(self.endpoint, self._behaviour, view, now)
        for worker_id in decision.stop:
            self.drain(self.workers[worker_id], "idle")
        for _ in range(decision.start):
            self._last_step_at = now
            self._add()
        await self._start_waiting()

    def _add(self) -> None:
        num_wanted = sum(each.state.is_wanted for each in self.workers.values())
        is_active = num_wanted < self.endpoint.workers_min
        price = self._tools.prices.usd_per_second(
            self.endpoint.gpu, gpu_count=self.endpoint.gpu_count, is_active=is_active
        )
        worker = WorkerSession(self._tools.clock(), is_active=is_active, usd_per_second=price)
        self.workers[worker.id] = worker

    async def _start_waiting(self) -> None:
        for worker in list(self.workers.values()):
            if worker.state is WorkerState.THROTTLED and self._has_gpu():
                await self._start(worker)

    def _has_gpu(self) -> bool:
        num_running = sum(each.process is not None for each in self.workers.values())
        capacity = self.endpoint.capacity
        return not self.is_short_of_gpus and (capacity is None or num_running < capacity)

    async def _start(self, worker: WorkerSession) -> None:
        try:
            process = await self._tools.launch(self.endpoint, worker)
        except EmulatorError as error:
            self._crashed(worker, str(error))
            return
        if worker.id not in self.workers:
            process.kill()  # the emulator has begun to end meanwhile
            await process.wait()
            return
        worker.started(process, self._tools.clock())
        logger.info("worker started", extra={"worker": worker.id, "pid": process.pid})
        watcher = asyncio.create_task(self._watch(worker, process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        for rule in self._faults_at(FaultPoint.WORKER_START, worker):
            self.apply(rule, worker)

    async def _watch(self, worker: WorkerSession, process: WorkerProcess) -> None:
        """Wait until the process ends. Pings may go on after that and prove nothing."""
        code = await process.wait()
        ending = f"exited with {code}" if code >= 0 else f"ended by signal {-code}"
        reason = f"{worker.reason}: {ending}" if worker.reason else ending
        worker.ended(self._tools.clock())
        self._tools.clear(worker)
        for job_id in list(worker.jobs):
            if not worker.is_end_requested and not worker.is_unfit:
                self._report_death(worker, job_id, reason, code)
            worker.release(job_id, self._tools.clock())
            await self._requeue(job_id, worker, reason)
        is_ended_by_us = self._is_closing or (worker.is_end_requested and not worker.is_unfit)
        if is_ended_by_us or worker.has_served:
            self._retire(worker, reason)
        else:
            tail = "\n".join(process.log_tail(LOG_TAIL_LINES))
            self._crashed(worker, f"{reason}; the end of its log:\n{tail}" if tail else reason)

    def _report_death(self, worker: WorkerSession, job_id: str, reason: str, code: int) -> None:
        meaning = None if worker.is_killed else SIGNAL_MEANINGS.get(-code)
        ending = f"{reason} ({meaning})" if meaning else reason
        detail = f"worker {ending} while it ran this job"
        self._report(HazardKind.KILLED_WORKER, worker, detail, job_id)

    async def _requeue(self, job_id: str, worker: WorkerSession, reason: str) -> None:
        if self._is_closing:
            await self._queue.give_back(job_id, worker.id, "emulator ended")
        else:
            await self._queue.lose(job_id, worker.id, f"worker lost: {reason}")

    def _retire(self, worker: WorkerSession, reason: str) -> None:
        now = self._tools.clock()
        worker.state = WorkerState.STOPPED
        worker.reason = reason
        self.workers.pop(worker.id, None)
        self._ended_billed_s += worker.meter.bill(now).billed_s
        cost = worker.cost_usd(now)
        if self._ended_usd is not None:
            self._ended_usd = None if cost is None else self._ended_usd + cost
        self.retired.append(worker)
        if worker.has_served:
            self.num_failures = 0
        logger.info("worker ended", extra={"worker": worker.id, "reason": reason})

    def _crashed(self, worker: WorkerSession, reason: str) -> None:
        """Leave the place of a worker that was unfit or had no job empty, longer each time."""
        self.num_failures += 1
        worker.state = WorkerState.UNHEALTHY
        worker.reason = reason
        worker.retry_at = self._tools.clock() + backoff_s(self.num_failures, self._behaviour)
        self._report(HazardKind.CRASH_LOOP, worker, reason)

    def _free_crashed_places(self) -> None:
        now = self._tools.clock()
        for worker in list(self.workers.values()):
            if worker.process is None and worker.retry_at is not None and now >= worker.retry_at:
                self._retire(worker, worker.reason or "crashed")

    def _faults_at(self, point: FaultPoint, worker: WorkerSession) -> tuple[FaultRule, ...]:
        return self._tools.faults.select(
            point, endpoint_id=self.endpoint.id, worker_id=worker.id, job_id=None
        )

    def _report(
        self, kind: HazardKind, worker: WorkerSession, detail: str = "", job_id: str | None = None
    ) -> None:
        self._tools.hazards.report(
            kind,
            endpoint_id=self.endpoint.id,
            worker_id=worker.id,
            job_id=job_id,
            detail=detail,
        )
