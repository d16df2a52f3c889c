"""The emulator: assembles its parts, starts and stops them."""

import asyncio
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aiohttp import web

from runpod_emulator.api import wire
from runpod_emulator.api.gateway import Endpoint, Gateway
from runpod_emulator.api.limits import RateLimiter
from runpod_emulator.api.server import make_app
from runpod_emulator.errors import EmulatorError
from runpod_emulator.faults import FaultPlan
from runpod_emulator.file_lock import locked
from runpod_emulator.hazards import HazardLog
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus
from runpod_emulator.jobs.queue import JobQueue
from runpod_emulator.jobs.sqlite_store import SqliteStore
from runpod_emulator.jobs.store import StoreUnusable
from runpod_emulator.jobs.webhooks import WebhookSender
from runpod_emulator.sdk_text import WORKER_OUTPUT, parse_line
from runpod_emulator.settings import EmulatorSettings, EndpointSettings
from runpod_emulator.workers.billing import Prices, load_prices
from runpod_emulator.workers.environ import worker_environ
from runpod_emulator.workers.fleet import Fleet, FleetTools
from runpod_emulator.workers.output import remove_old_logs
from runpod_emulator.workers.process import WorkerProcess
from runpod_emulator.workers.reaper import Reaper
from runpod_emulator.workers.session import WorkerSession

logger = logging.getLogger(__name__)
worker_output = logging.getLogger(WORKER_OUTPUT)

TICK_S = 0.1
SWEEP_LIMIT = 200


class Emulator:
    """RunPod Serverless on one machine.

    `start` raises `EmulatorError`. After it `url` and `base_url` are known; `faults` and
    `hazards` are there from the beginning.
    """

    def __init__(
        self, settings: EmulatorSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self.faults = FaultPlan(settings.seed)
        self.hazards = HazardLog(clock)
        self.url = ""
        self._clock = clock
        self._reaper = Reaper()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def base_url(self) -> str:
        """The value that clients set as `runpod.endpoint_url_base`."""
        return f"{self.url}/v2"

    async def start(self) -> None:
        # `parents=True` would ignore the mode of all but the last folder
        self.settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as resources:
            resources.enter_context(_locked_state(self.settings.state_dir))
            await self._start()
            self._resources = resources.pop_all()

    async def _start(self) -> None:
        settings = self.settings
        due_at = functools.partial(lifecycle.due_at, behaviour=settings.behaviour)
        (settings.state_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        try:
            self._store = SqliteStore(settings.database, due_at)
        except StoreUnusable as error:
            raise EmulatorError(str(error)) from error
        # what a killed emulator's workers have left
        shutil.rmtree(settings.state_dir / "workers", ignore_errors=True)
        self._sender = WebhookSender(
            self._store, settings.behaviour, self._clock, self._webhook_body, self._forget
        )
        self.gateway = self._build_gateway()
        for endpoint in self.gateway.endpoints.values():
            await endpoint.queue.recover()
        await self._reaper.start()
        await self._listen()
        self._tasks = [
            asyncio.create_task(self._tick_on(), name="ticks"),
            asyncio.create_task(self._sender.run(), name="webhooks"),
        ]
        logger.info("emulator started", extra={"url": self.url})

    async def stop(self) -> None:
        """Take no further job, let workers finish, then end. Stored jobs are not lost.

        A second call does nothing.
        """
        if self.gateway.draining.is_set():
            return
        self.gateway.draining.set()
        await asyncio.gather(*(each.fleet.close() for each in self.gateway.endpoints.values()))
        for endpoint in self.gateway.endpoints.values():
            endpoint.queue.release()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._runner.cleanup()
        await self._reaper.stop()
        await self._store.close()
        self._resources.close()
        logger.info("emulator stopped")

    def job_must_stop(self, worker_id: str, job_id: str) -> None:
        """Pass a queue's request (`QueueListener`) on to the worker's fleet."""
        for endpoint in self.gateway.endpoints.values():
            endpoint.fleet.job_must_stop(worker_id, job_id)

    def webhook_is_due(self) -> None:
        """Wake the webhook sender (`QueueListener`)."""
        self._sender.notify()

    def _build_gateway(self) -> Gateway:
        settings, prices = self.settings, load_prices()
        return Gateway(
            endpoints={each.id: self._build_endpoint(each, prices) for each in settings.endpoints},
            store=self._store,
            behaviour=settings.behaviour,
            limiter=RateLimiter(
                time.monotonic,
                is_on=settings.rate_limits,
                limits_queue=settings.behaviour.queue_limit,
            ),
            faults=self.faults,
            hazards=self.hazards,
            prices=prices,
            clock=self._clock,
            started_at=self._clock(),
            api_key=settings.api_key,
        )

    def _build_endpoint(self, endpoint: EndpointSettings, prices: Prices) -> Endpoint:
        queue = self._build_queue(endpoint.id)
        tools = FleetTools(
            store=self._store,
            behaviour=self.settings.behaviour,
            clock=self._clock,
            hazards=self.hazards,
            faults=self.faults,
            prices=prices,
            launch=self._launch,
            clear=self._clear,
        )
        return Endpoint(settings=endpoint, queue=queue, fleet=Fleet(endpoint, queue, tools))

    def _build_queue(self, endpoint_id: str) -> JobQueue:
        return JobQueue(endpoint_id, self._store, self.settings.behaviour, self._clock, self)

    async def _listen(self) -> None:
        app = make_app(self.gateway, self.settings.host, self.settings.cors_origin)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.settings.host, self.settings.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            await self._reaper.stop()
            await self._store.close()
            raise EmulatorError(
                f"cannot listen on {self.settings.host}:{self.settings.port}: "
                f"{os.strerror(error.errno) if error.errno else error}; "
                "choose another port, or 0 for any"
            ) from error
        port = self._runner.addresses[0][1]
        host = self.settings.host
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _tick_on(self) -> None:
        """Tick until cancelled. An error in one tick is logged, and the next tick tries again."""
        while True:
            try:
                await self._tick()
            except Exception:
                logger.exception("tick failed")
            await asyncio.sleep(TICK_S)

    async def _tick(self) -> None:
        for job in await self._store.due(self._clock(), SWEEP_LIMIT):
            endpoint = self.gateway.endpoints.get(job.endpoint_id)
            if endpoint is not None:
                await endpoint.queue.sweep(job)
            else:
                await self._sweep_absent(job)
        for endpoint in self.gateway.endpoints.values():
            await endpoint.fleet.tick()

    async def _sweep_absent(self, job: Job) -> None:
        """Sweep a job whose endpoint is not configured in this run; it stays for a later run."""
        queue = self._build_queue(job.endpoint_id)
        if job.status is JobStatus.IN_PROGRESS:
            await queue.give_back(job.id, job.worker_id or "", "its endpoint is absent")
        else:
            await queue.sweep(job)

    async def _launch(self, endpoint: EndpointSettings, worker: WorkerSession) -> WorkerProcess:
        home = self._home(worker)
        logs = self.settings.state_dir / "logs"
        with suppress(OSError):
            remove_old_logs(logs, living=self._living())
        environ = worker_environ(
            endpoint,
            self.settings.behaviour,
            base_url=self.url,
            worker_id=worker.id,
            token=worker.token,
            home=home,
            inherited=os.environ,
        )
        return await WorkerProcess.start(
            endpoint.command,
            environ=environ,
            workdir=endpoint.workdir,
            home=home,
            log=logs / f"{worker.id}.log",
            reaper=self._reaper,
            echo=functools.partial(_echo, worker.id) if self.settings.echo_logs else None,
        )

    def _clear(self, worker: WorkerSession) -> None:
        """Remove a worker's home, which ends with it as a container's disk does."""
        shutil.rmtree(self._home(worker), ignore_errors=True)

    def _living(self) -> set[str]:
        return {id_ for each in self.gateway.endpoints.values() for id_ in each.fleet.workers}

    def _home(self, worker: WorkerSession) -> Path:
        return self.settings.state_dir / "workers" / worker.id

    async def _webhook_body(self, job: Job) -> bytes:
        payload = await self._store.payload(job.id)
        return wire.webhook_object(job, payload, await self._store.output(job.id))

    async def _forget(self, job: Job) -> None:
        await self._store.remove(job)


@contextmanager
def _locked_state(state_dir: Path) -> Iterator[None]:
    """Lock the folder against other emulators: a start deletes files of the last one's workers."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(state_dir / "lock"))
        except BlockingIOError as error:
            raise EmulatorError(
                f"state folder {state_dir}: expected no other emulator in it, got one that runs; "
                "stop it, or name another folder (--state-dir)"
            ) from error
        yield


def _echo(worker_id: str, line: str) -> None:
    printed = parse_line(line)
    extra = {"worker": worker_id, "job": printed.job_id}
    worker_output.log(printed.level, "%s", printed.text, extra=extra)
