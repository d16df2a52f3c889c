"""The real worker, `python handler.py`, from its start to its first request for a job or to ready.

The platform that it talks to is the least that the SDK works with, on this machine.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from pixpod_bench.boot_report import NoTimeline, read_log
from pixpod_bench.cold.case import CPU_CATALOG, Case, catalog_for
from pixpod_bench.cold.processes import LIMIT_S, ROOT, environment
from pixpod_bench.cold.runs import NotHere, Sample

MODEL_READY = "model ready"
"""The worker's own word, in its log, for a model with every byte read, checked and bound."""

_HOLD_S = 5.0
"""Of a request for a job that has none; the platform holds it, too."""


def boot_to_job_take(settings: Mapping[str, str], before: Callable[[], None]) -> Sample:
    """Seconds from exec to the first request for a job. Raises NotHere if none comes."""
    with _platform() as platform:
        before()
        began = time.perf_counter()
        with _handler([], {**settings, **platform.environment()}) as (process, log):
            while not platform.taken.wait(0.2):
                if process.poll() is not None or time.perf_counter() - began > LIMIT_S:
                    raise NotHere(_last_error(log))
            return Sample(seconds=platform.taken_at - began)


def boot_to_ready(case: Case, before: Callable[[], None]) -> Sample:
    """Seconds from exec to ready, as a worker on the platform. Raises NotHere if it fails."""
    size_bytes = sum(path.stat().st_size for path in case.paths())
    with _platform() as platform:
        before()
        began = time.perf_counter()
        with _handler([], {**worker_settings(case), **platform.environment()}) as (process, log):
            while time.perf_counter() - began < LIMIT_S:
                line = log.readline()
                if MODEL_READY in line:
                    return Sample(seconds=time.perf_counter() - began, size_bytes=size_bytes)
                if not line and process.poll() is not None:
                    break
                if not line:
                    time.sleep(0.01)
            raise NotHere(_last_error(log))


def boot_to_image(case: Case, request: Mapping[str, object], before: Callable[[], None]) -> Sample:
    """Seconds from exec to the end of a process that draws one image; `details` have the spans
    of its boot. Raises NotHere if it fails.
    """
    with tempfile.TemporaryDirectory() as images:
        settings = {
            **worker_settings(case),
            "PIXPOD_PRELOAD": "true",
            "PIXPOD_WARMUP_SIZES": "none",  # it would follow the image, and hold up the end
            "PIXPOD_OUTPUT_DIR": images,
        }
        job = json.dumps({"input": {"model": case.model, **request}})
        before()
        began = time.perf_counter()
        with _handler(["--test_input", job], settings) as (process, log):
            status = process.wait(LIMIT_S)
            seconds = time.perf_counter() - began
            try:
                spans = read_log(log)
            except NoTimeline as exc:
                raise NotHere(f"status {status}: {_last_error(log)}") from exc
    marks = {
        "ready": next(span.ended_s for span in spans if span.phase == "ready"),
        "first image": next(span.ended_s for span in spans if span.phase == "first_image"),
    }
    read_bytes = sum(span.size_bytes or 0 for span in spans)
    details = {"spans": [asdict(span) for span in spans]}
    return Sample(seconds=seconds, size_bytes=read_bytes, marks=marks, details=details)


def worker_settings(case: Case) -> dict[str, str]:
    """The environment of a worker that serves the case's model as it is stored, and eagerly: what
    it is compared with does neither convert nor compile.
    """
    settings = {
        "PIXPOD_WEIGHTS_DIR": str(case.directory),
        "PIXPOD_MODELS": case.model,
        "PIXPOD_ACCEPT_LICENCES": catalog_for(case.device)[case.model].licence,
        "PIXPOD_DEVICE": case.device,
        "PIXPOD_COMPILE": "false",
    }
    if precision := case.weights().precision:
        settings["PIXPOD_PRECISION"] = precision
    if case.device == "cpu":
        settings["PIXPOD_CATALOG"] = str(CPU_CATALOG)
    return settings


@contextmanager
def _handler(
    arguments: list[str], settings: Mapping[str, str]
) -> "Iterator[tuple[subprocess.Popen[bytes], IO[str]]]":
    """A worker in a process group of its own, since the SDK starts processes; and its log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("wb") as log, path.open(encoding="utf-8", errors="replace") as reader:
            process = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
                [sys.executable, str(ROOT / "handler.py"), *arguments],
                env=environment(settings),
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
    """Notes when the first job is asked for, and has none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.taken = threading.Event()
        self.taken_at = 0.0

    def environment(self) -> dict[str, str]:
        """What the platform tells a worker. The SDK's checks of the system ask the network."""
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
        """A worker that is killed hangs up."""


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
        """Nothing."""


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
    return lines[-1][:300] if lines else "the worker ended without a word"
