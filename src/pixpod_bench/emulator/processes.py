"""Runs servers and workers in processes of their own, and measures their CPU time (Linux)."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.command_line.welcome import KEY_VARIABLE
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.environ import worker_environ

HERE = Path(__file__).parent
HANDLER = HERE / "handler.py"
STUB_WORKER = HERE / "stub_worker.py"
STUB_PLATFORM = HERE / "stub_platform.py"

ENDPOINT_ID = "bench"
API_KEY = "for-this-machine-only"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0

NUM_CORES = os.cpu_count() or 1
_ADDRESS = re.compile(r"http://[0-9.]+:[0-9]+")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Server:
    """A process that has printed its address."""

    def __init__(self, process: Process, url: str) -> None:
        self.url = url
        self._process = process

    def cpu_s(self) -> float:
        """Return the CPU time of this process's threads, without its children."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        # in nanoseconds: an idle emulator needs less than a tick (10 ms) in a second
        return sum(int(each.read_text(encoding="utf-8").split()[0]) for each in threads) / 1e9


def machine_busy_s() -> float:
    """Return the CPU time that all processes together have used, on all cores."""
    with Path("/proc/stat").open(encoding="utf-8") as stat:
        user, nice, system, _idle, _iowait, *rest = map(int, stat.readline().split()[1:])
    return (user + nice + system + sum(rest[:3])) / _TICKS_PER_S


def own_environ(source: Path | None = None) -> dict[str, str]:
    """Return this process's environment with its module path, those in `source` first."""
    path = [str(source) if source else "", *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def own_busy_s() -> float:
    """Return the CPU time of this process and of its descendants that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@asynccontextmanager
async def running_emulator(
    worker: Path,
    num_workers: int,
    concurrency: int,
    state_dir: Path,
    source: Path | None = None,
) -> AsyncIterator[Server]:
    """Run the emulator as its command line does, without limits and without logs of workers.

    `source` is a directory with another emulator than this checkout's.
    """
    flags = {
        "--handler": worker,
        "--endpoint": ENDPOINT_ID,
        "--workers-min": num_workers,
        "--workers-max": num_workers,
        "--env": f"BENCH_CONCURRENCY={concurrency}",
        "--port": 0,
        "--state-dir": state_dir,
        "--behaviour": "queue_limit=false",
        "--log-level": "WARNING",
    }
    given = [str(part) for flag in flags.items() for part in flag]
    command = ("-m", "runpod_emulator", "serve", *given, "--no-rate-limits", "--quiet")
    async with _running_server(command, {KEY_VARIABLE: API_KEY}, source) as server:
        yield server


@asynccontextmanager
async def running_stub_platform(
    num_workers: int, concurrency: int, directory: Path
) -> AsyncIterator[Server]:
    """Start real SDK workers as the emulator starts them."""
    endpoint = EndpointSettings(
        id=ENDPOINT_ID,
        command=(sys.executable, "-u", str(HANDLER)),
        env={"BENCH_CONCURRENCY": str(concurrency)},
    )
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(_running_server((str(STUB_PLATFORM),), {}))
        for number in range(num_workers):
            environ = worker_environ(
                endpoint,
                Behaviour(),
                base_url=server.url,
                worker_id=f"worker-{number}",
                token=API_KEY,
                home=directory,
                inherited=os.environ,
            )
            await stack.enter_async_context(_running(endpoint.command, environ))
        yield server


@asynccontextmanager
async def _running_server(
    arguments: Sequence[str], environ: Mapping[str, str], source: Path | None = None
) -> AsyncIterator[Server]:
    """End the server with SIGTERM at the end of the context. Raises `ServerNotStarted`."""
    environ = {**own_environ(source), **environ}
    with tempfile.TemporaryFile() as log:
        async with _running((sys.executable, *arguments), environ, PIPE, log) as process:
            assert process.stdout is not None
            async with asyncio.timeout(START_LIMIT_S):
                line = (await process.stdout.readline()).decode()
            address = _ADDRESS.search(line)
            if address is None:
                log.seek(0)
                raise ServerNotStarted(f"{' '.join(arguments)}: {log.read().decode()}")
            try:
                yield Server(process, address[0])
            finally:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    process.terminate()
                    async with asyncio.timeout(STOP_LIMIT_S):
                        await process.wait()


class ServerNotStarted(Exception):
    """A process did not print its address; the message is its log."""


@asynccontextmanager
async def _running(
    command: Sequence[str],
    environ: Mapping[str, str],
    stdout: int = DEVNULL,
    stderr: int | IO[bytes] = DEVNULL,
) -> AsyncIterator[Process]:
    """Run a process until the end of the context; then kill it with everything it has started."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environ,
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
