"""Runs Hub tests against one endpoint by its client API, and shows their progress."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import aiohttp

from runpod_emulator.command_line.hub_file import HubTest
from runpod_emulator.command_line.hub_report import HubResult
from runpod_emulator.jobs.job import JobStatus
from runpod_emulator.sdk_text import readable_error
from runpod_emulator.settings import EndpointSettings

POLL_INTERVAL_S = 0.5
MAX_START_FAILURES = 2
"""A test fails after this many workers in a row that ended before they took a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The endpoint under test; `url` is the emulator's."""

    url: str
    endpoint: EndpointSettings
    api_key: str = field(repr=False)

    def limit_s(self, test: HubTest) -> float:
        """Return the time limit of a test: a worker's start plus the longest execution."""
        given_ms = test.timeout_ms
        execution_s = given_ms / 1000 if given_ms else self.endpoint.execution_timeout_s
        return self.endpoint.init_timeout_s + execution_s


class Progress:
    """Shows progress: one line that is overwritten on a terminal, else a line for each change."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._news = ""
        self._since = 0.0

    def show(self, name: str, status: JobStatus) -> None:
        now, news = self._clock(), f"{name}: {status}"
        is_new = news != self._news
        if is_new:
            self._news, self._since = news, now
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{news} {now - self._since:.0f} s")
        elif is_new:
            self._stream.write(f"{news}\n")
        self._stream.flush()

    def clear(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


async def run_hub_tests(
    tests: Sequence[HubTest], target: Target, progress: Progress
) -> list[HubResult]:
    """Run the tests one after another."""
    headers = {"Authorization": f"Bearer {target.api_key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        results = [await _Trial(session, target, test, progress).run() for test in tests]
    progress.clear()
    return results


class _Trial:
    """One test under way."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        test: HubTest,
        progress: Progress,
    ) -> None:
        self._session = session
        self._target = target
        self._test = test
        self._progress = progress
        self._url = f"{target.url}/v2/{target.endpoint.id}"
        self._started_at = time.monotonic()
        self._http_status: int | None = None
        self._status: JobStatus | None = None

    async def run(self) -> HubResult:
        try:
            async with asyncio.timeout(self._target.limit_s(self._test)):
                error = await self._until_final()
        except TimeoutError:
            error = f"no result within {self._target.limit_s(self._test):g} s"
        except aiohttp.ClientError as cause:
            error = f"{type(cause).__name__}: {cause}"
        return HubResult(
            name=self._test.name,
            http_status=self._http_status,
            status=self._status,
            duration_s=time.monotonic() - self._started_at,
            error=error,
        )

    async def _until_final(self) -> str | None:
        """Wait for the job's end; return its error, or the reason to stop waiting."""
        body: dict[str, Any] = {"input": self._test.input}
        if self._test.timeout_ms is not None:
            body["policy"] = {"executionTimeout": self._test.timeout_ms}
        self._progress.show(self._test.name, JobStatus.IN_QUEUE)
        job = await self._ask("POST", "/runsync?wait=1000", body)
        while isinstance(job, dict):
            self._status = JobStatus(job["status"])
            if self._status.is_final:
                return readable_error(job["error"]) if job.get("error") else None
            self._progress.show(self._test.name, self._status)
            if self._status is JobStatus.IN_QUEUE and (failure := await self._start_failure()):
                return failure
            await asyncio.sleep(POLL_INTERVAL_S)
            job = await self._ask("GET", f"/status/{job['id']}")
        return job

    async def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any] | str:
        """Send a request; return the status object, or the text of a refusal."""
        async with self._session.request(method, self._url + path, json=body) as response:
            self._http_status = response.status
            if response.status != 200:
                self._status = None
                return await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def _start_failure(self) -> str | None:
        """Return the last worker's output if workers repeatedly end before they take a job."""
        async with self._session.get(f"{self._target.url}/emulator/state") as response:
            state = await response.json()
        endpoint = state["endpoints"][self._target.endpoint.id]
        if endpoint["failures_in_a_row"] < MAX_START_FAILURES:
            return None
        reasons = [worker["reason"] for worker in endpoint["workers"] if worker["reason"]]
        return f"the worker does not start\n{reasons[-1] if reasons else ''}"
