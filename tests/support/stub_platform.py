"""A platform of one worker whose every answer a test decides: held polls, results, faults."""

import asyncio
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

HOLD_S = 20.0
LIMIT_S = 60.0
RESET = "reset"

Outcome = int | str
"""A status, or RESET."""


@dataclass(frozen=True, slots=True)
class Post:
    """A result that the worker has posted, and what it was answered."""

    job_id: str
    body: bytes
    outcome: Outcome


@dataclass(slots=True, kw_only=True, eq=False)
class StubPlatform:
    """All methods may be called from any thread. `outcomes` answer the next results."""

    url: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    posts: "queue.Queue[Post]" = field(default_factory=queue.Queue)
    is_polled: threading.Event = field(default_factory=threading.Event)
    has_sent_job: threading.Event = field(default_factory=threading.Event)
    num_closed_polls: int = 0
    _jobs: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)
    _stops: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop | None = None

    def give(self, job_id: str, given: Mapping[str, Any]) -> None:
        """Have a job sent to the poll that is open, or to the next one. Does not wait for it."""
        self._put(self._jobs, {"id": job_id, "input": dict(given)})

    def stop_job(self, job_id: str) -> None:
        """Have the worker stop a job."""
        self._put(self._stops, job_id)

    def next_post(self) -> Post:
        """Wait for the next result. Raises queue.Empty."""
        return self.posts.get(timeout=LIMIT_S)

    def environ(self) -> dict[str, str]:
        """Return the variables of a worker of this platform."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=x",
            "RUNPOD_AI_API_KEY": "key",
            "RUNPOD_POD_ID": "worker-1",
            "RUNPOD_PING_INTERVAL": "2000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
        }

    @property
    def num_waiting(self) -> int:
        """Number of jobs that no worker has taken."""
        return self._jobs.qsize()

    def _put(self, waiting: "asyncio.Queue[Any]", item: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(waiting.put_nowait, item)

    async def serve(self, is_ready: threading.Event, over: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/job-take/{worker}", self._take)
        app.router.add_get("/job-take-batch/{worker}", self._take)
        app.router.add_get("/job-stop/{worker}", self._stop)
        app.router.add_get("/ping/{worker}", _ping)
        app.router.add_post("/job-done/{worker}/{job}", self._done)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        is_ready.set()
        await asyncio.to_thread(over.wait)
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.is_polled.set()
        try:
            async with asyncio.timeout(HOLD_S):  # `wait_for` may return a job to a closed poll
                job = await self._jobs.get()
        except TimeoutError:
            return web.Response(status=204)
        except asyncio.CancelledError:
            self.num_closed_polls += 1
            raise
        response = web.json_response(job)
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionResetError:  # closed since the job came
            self._jobs.put_nowait(job)
            self.num_closed_polls += 1
        else:
            self.has_sent_job.set()
        return response

    async def _stop(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(HOLD_S):
                job_id = await self._stops.get()
        except TimeoutError:
            return web.Response(status=204)
        return web.json_response({"jobsToStop": [job_id]})

    async def _done(self, request: web.Request) -> web.Response:
        body = await request.read()
        if b'"IN_PROGRESS"' in body:
            return web.Response()
        outcome = self.outcomes.pop(0) if self.outcomes else 200
        self.posts.put(Post(request.match_info["job"], body, outcome))
        if outcome == RESET:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=int(outcome))


async def _ping(request: web.Request) -> web.Response:
    return web.Response()


@contextmanager
def running_stub() -> Iterator[StubPlatform]:
    """A platform in a thread of its own, on a free port of the loopback interface."""
    stub, is_ready, over = StubPlatform(), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(stub.serve(is_ready, over)))
    thread.start()
    try:
        assert is_ready.wait(LIMIT_S)
        yield stub
    finally:
        over.set()
        thread.join()


class WorkerProcess:
    """A worker of a stub platform."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Return the exit status."""
        return self._process.wait(LIMIT_S)


@contextmanager
def running_worker(
    stub: StubPlatform, handler: Path, folder: Path, env: Mapping[str, str]
) -> Iterator[WorkerProcess]:
    """A worker that polls already; ended at the end. It has the SDK of this process."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, handler],
            cwd=folder,
            env={**kept, "HOME": str(folder), **stub.environ(), **env},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not stub.is_polled.wait(0.05):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        yield WorkerProcess(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a killed worker leaves its pings
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
