"""Runs an emulator in a thread of its own, for the tests of a handler or a client.

with running_emulator(settings_for(Path("handler.py"), tmp_path)) as emulator:
    runpod.endpoint_url_base, runpod.api_key = emulator.base_url, emulator.api_key
    assert runpod.Endpoint("test").run_sync({"prompt": "hello"}) == ...
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from runpod_emulator.api.gateway import Gateway
from runpod_emulator.api.snapshot import job_details, snapshot
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.emulator import Emulator
from runpod_emulator.errors import EmulatorError
from runpod_emulator.faults import parse_rule
from runpod_emulator.settings import EmulatorSettings, EndpointSettings

T = TypeVar("T")

START_LIMIT_S = 30.0
POLL_S = 0.05

QUICK = Behaviour(ping_interval_s=1.0, heartbeat_timeout_s=4.0, stop_grace_s=1.0)
"""Behaviour with short times, for which lost workers are noticed sooner than on the platform."""


class RunningEmulator:
    """An emulator in another thread. Its methods wait for the answer."""

    def __init__(self, emulator: Emulator, loop: asyncio.AbstractEventLoop) -> None:
        self.url = emulator.url
        self.base_url = emulator.base_url
        self.api_key = emulator.settings.api_key
        self._emulator = emulator
        self._loop = loop

    @property
    def gateway(self) -> Gateway:
        return self._emulator.gateway

    def state(self) -> dict[str, Any]:
        """Return the same as `/emulator/state`."""
        return self._run(snapshot(self.gateway))

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the same as `/emulator/jobs/ID`: status, history, cost. Raises KeyError."""

        async def details() -> dict[str, Any]:
            job = await self.gateway.store.get(job_id)
            if job is None:
                raise KeyError(job_id)
            return job_details(self.gateway, self.gateway.endpoints[job.endpoint_id], job)

        return self._run(details())

    def add_fault(self, **rule: object) -> None:
        """Add a rule as in `POST /emulator/faults`. Raises `InvalidFault`."""
        self._emulator.faults.add(parse_rule(rule))

    def clear_faults(self) -> None:
        self.gateway.clear_faults()

    def wait_until(
        self, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Wait for a state for which `holds` is true, and return it. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not holds(state := self.state()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return state

    def stop(self) -> None:
        """Drain and end; may be called once more at the end of its context."""
        self._run(self._emulator.stop())

    def _run(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def settings_for(
    handler: Path,
    state_dir: Path,
    *,
    behaviour: Behaviour = QUICK,
    endpoint_id: str = "test",
    rate_limits: bool = True,
    **endpoint: Any,  # noqa: ANN401 - any other field of EndpointSettings
) -> EmulatorSettings:
    """Return settings with one endpoint that runs `handler`, on a free port."""
    command = (sys.executable, "-u", str(handler.absolute()))
    return EmulatorSettings(
        endpoints=(EndpointSettings(id=endpoint_id, command=command, **endpoint),),
        api_key="test-key",
        state_dir=state_dir,
        database=state_dir / "jobs.db",
        behaviour=behaviour,
        rate_limits=rate_limits,
        echo_logs=False,
    )


@contextmanager
def running_emulator(settings: EmulatorSettings) -> Iterator[RunningEmulator]:
    """Run an emulator; drain it at the end, so that no worker is left. Raises `EmulatorError`."""
    started: Future[RunningEmulator] = Future()
    over = threading.Event()

    def run() -> None:
        try:
            asyncio.run(_run(settings, started, over))
        finally:
            started.cancel()  # ends the wait for a failed start; no effect after a start

    thread = threading.Thread(target=run, name="emulator")
    thread.start()
    try:
        yield started.result(START_LIMIT_S)
    finally:
        over.set()
        thread.join()


async def _run(
    settings: EmulatorSettings, started: "Future[RunningEmulator]", over: threading.Event
) -> None:
    emulator = Emulator(settings)
    try:
        await emulator.start()
    except EmulatorError as error:
        started.set_exception(error)
        return
    started.set_result(RunningEmulator(emulator, asyncio.get_running_loop()))
    await asyncio.to_thread(over.wait)
    await emulator.stop()
