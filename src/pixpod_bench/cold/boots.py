"""Runs the real worker, `python handler.py`, until it takes jobs, is ready, or has an image.

Its platform is a minimal server on this machine, with which the SDK works.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from pixpod_bench.cold.case import Case
from pixpod_bench.cold.processes import LIMIT_S
from pixpod_bench.cold.runs import Before, NotHere, Sample
from pixpod_bench.machine import ROOT, environment
from pixpod_tools.boot_report.report import MESSAGE, NoTimeline, read_log

TAKING_JOBS = "taking jobs"
FIRST_IMAGE = "first image"

_HOLD_S = 5.0
"""Seconds that a request for a job is left open, as the platform does."""


def boot_worker(
    environ: Mapping[str, str],
    before: Before,
    *,
    root: Path = ROOT,
    size_bytes: int | None = None,
) -> Sample:
    """Boot the worker of the checkout at `root` until all its models are ready.

    Seconds are from exec, as is the mark TAKING_JOBS, the first request for a job. Raises NotHere
    if the worker ends before.
    """
    with _platform() as platform:
        given = {**environ, **platform.environment()}
        before()
        began = time.perf_counter()
        with _handler(root, [], given) as (process, log):
            ready_at = _wait_for_timeline(process, log)
            if not platform.taken.wait(LIMIT_S):
                raise NotHere("the worker requested no job")
    marks = {TAKING_JOBS: platform.taken_at - began}
    return Sample(seconds=ready_at - began, size_bytes=size_bytes, marks=marks)


def boot_to_image(case: Case, request: Mapping[str, object], before: Before) -> Sample:
    """Run a process that generates one image; the mark FIRST_IMAGE is when the pixels are there.

    Raises NotHere if it fails.
    """
    with tempfile.TemporaryDirectory() as images:
        environ = {**case.environ(), "PIXPOD_OUTPUT_DIR": images}
        job = json.dumps({"input": {"model": case.model, **request}})
        before()
        began = time.perf_counter()
        with _handler(ROOT, ["--test_input", job], environ) as (process, log):
            status = process.wait(LIMIT_S)
            seconds = time.perf_counter() - began
            try:
                spans = read_log(log)
            except NoTimeline as exc:
                raise NotHere(f"status {status}: {_last_error(log)}") from exc
    moments = {span.phase: span.ended_s for span in spans}
    if "first_image" not in moments:
        raise NotHere(f"status {status}: no image")
    marks = {"ready": moments["ready"], FIRST_IMAGE: moments["first_image"]}
    return Sample(seconds=seconds, size_bytes=case.size_bytes(), marks=marks)


def _wait_for_timeline(process: "subprocess.Popen[bytes]", log: IO[str]) -> float:
    """Return the time at which the worker logged that its models are ready. Raises NotHere."""
    began = time.perf_counter()
    while time.perf_counter() - began < LIMIT_S:
        line = log.readline()
        if MESSAGE in line and '"ready"' in line:
            return time.perf_counter()
        if MESSAGE in line or (not line and process.poll() is not None):
            break
        if not line:
            time.sleep(0.005)
    raise NotHere(_last_error(log))


@contextmanager
def _handler(
    root: Path, arguments: list[str], environ: Mapping[str, str]
) -> "Iterator[tuple[subprocess.Popen[bytes], IO[str]]]":
    """Start a worker in a process group of its own, since the SDK starts processes.

    Yields the worker and its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("wb") as log, path.open(encoding="utf-8", errors="replace") as reader:
            process = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
                [sys.executable, str(root / "handler.py"), *arguments],
                env=environment(environ, root),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process, reader
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class _Platform(ThreadingHTTPServer):
    """A platform without jobs, which notes the time of the first request for a job."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.taken = threading.Event()
        self.taken_at = 0.0

    def environment(self) -> dict[str, str]:
        """Return a worker's variables, without the SDK's system checks, which need the network."""
        root = f"http://127.0.0.1:{self.server_address[1]}/v2/bench"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID",
            "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "for this machine only",
            "RUNPOD_POD_ID": "bench",
            "RUNPOD_ENDPOINT_ID": "bench",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: a worker that is killed closes its connections."""


class _Answer(BaseHTTPRequestHandler):
    server: _Platform

    def do_GET(self) -> None:
        if "/job-take" in self.path:
            if not self.server.taken.is_set():
                self.server.taken_at = time.perf_counter()
                self.server.taken.set()
            time.sleep(_HOLD_S)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@contextmanager
def _platform() -> Iterator[_Platform]:
    with _Platform() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _last_error(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1][:300] if lines else "the worker ended without a message"
