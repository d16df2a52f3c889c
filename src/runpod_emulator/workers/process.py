"""The process of one worker: its process group, its signals and its output.

It knows neither jobs nor the protocol. The group ends with its main process, since the SDK's ping
process would otherwise go on for ever.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runpod_emulator.errors import EmulatorError
from runpod_emulator.workers.output import WorkerOutput
from runpod_emulator.workers.reaper import Reaper, kill_group

logger = logging.getLogger(__name__)

DRAIN_S = 0.5
"""Time to read further output when a process that left the group keeps the pipe open."""


class WorkerNotStarted(EmulatorError):
    """The command cannot be run."""

    def __init__(self, command: Sequence[str], cause: Exception) -> None:
        super().__init__(f"worker not started: {shlex.join(command)}: {cause}")


class WorkerProcess:
    """A worker's process, made by `start`. A signal to an ended worker does nothing."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        output: WorkerOutput,
        pipe: asyncio.ReadTransport,
        reaper: Reaper,
    ) -> None:
        self.pid = process.pid
        """Id of the process and of its process group."""
        self._process = process
        self._output = output
        self._pipe = pipe
        self._reaper = reaper
        self._end = asyncio.create_task(self._see_off(), name=f"worker process {self.pid}")

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        workdir: Path,
        home: Path,
        log: Path,
        reaper: Reaper,
        echo: Callable[[str], None] | None,
    ) -> "WorkerProcess":
        """Run `command` in `workdir` with exactly `environ`. Makes the directory `home` if need be.

        Its output is appended to `log`, and passed to `echo` line by line. The process ends
        with the event loop. Raises `WorkerNotStarted`.
        """
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            output = WorkerOutput(log, echo)
            pipe, write_end = await _open_pipe(output)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    # a pipe that asyncio made would keep its wait() from returning while open
                    stdout=write_end,
                    stderr=asyncio.subprocess.STDOUT,
                    cwd=workdir,
                    env=environ,
                    start_new_session=True,
                )
            finally:
                os.close(write_end)  # if there is no process, the pipe's end closes `output`
        except (OSError, ValueError) as exc:
            raise WorkerNotStarted(command, exc) from exc
        reaper.add(process.pid)
        return cls(process, output, pipe, reaper)

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Return the exit code, negative for a signal, after the group's end and last output."""
        return await asyncio.shield(self._end)

    def terminate(self) -> None:
        """Send SIGTERM to the main process only, so that pings go on while the worker drains."""
        self._send(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        self._send(os.killpg, signal.SIGKILL)

    def freeze(self, *, whole_group: bool = True) -> None:
        """Stop the process. Without `whole_group` its ping process goes on."""
        self._send(os.killpg if whole_group else os.kill, signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(os.killpg, signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of output; at most `TAIL_LINES` are kept."""
        tail = self._output.tail
        return list(tail)[max(0, len(tail) - lines) :]

    def _send(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        # not asyncio's send_signal: it may reap the process and so lose the exit code
        if self.is_running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(self.pid, number)

    async def _see_off(self) -> int:
        with contextlib.closing(self._pipe):
            try:
                await self._process.wait()
            finally:  # cancelled when the loop ends before the worker
                kill_group(self.pid)
                self._reaper.remove(self.pid)
                code = await self._process.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._output.is_closed.wait()
        await self._output.is_closed.wait()
        return code


async def _open_pipe(output: WorkerOutput) -> tuple[asyncio.ReadTransport, int]:
    """Return a pipe that is read into `output`; the caller closes the returned writing end."""
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: output, os.fdopen(read_end, "rb", buffering=0))
    return pipe, write_end
