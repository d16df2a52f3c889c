"""Just enough of RunPod's worker protocol to drive the real SDK: take, stop, done, ping.

A queue in memory and one worker; it has no states, retries or limits.
"""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HANDLER = Path(__file__).resolve().parents[2] / "handler.py"
WORKER_ID = "worker-1"
HOLD_S = 20
"""As the platform: a poll that is answered at once makes the SDK ask in a tight loop."""


class StubPlatform:
    """Hands out jobs one by one and keeps what the worker posts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.results: dict[str, dict[str, Any]] = {}
        self._jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._is_done = threading.Condition()
        self._is_stopping = threading.Event()

    def run(self, job: dict[str, Any], timeout_s: float = 120) -> dict[str, Any]:
        """Submit a job and wait for the body that the worker posts for it."""
        self._jobs.put(job)
        with self._is_done:
            if not self._is_done.wait_for(lambda: job["id"] in self.results, timeout_s):
                raise TimeoutError(f"no result of job {job['id']} in {timeout_s} s")
        return self.results[job["id"]]

    def release(self) -> None:
        """Answer all open polls, so that a worker that was told to end can do so."""
        self._is_stopping.set()
        self._jobs.put(None)

    def take(self) -> dict[str, Any] | None:
        if self._is_stopping.is_set():
            return None
        try:
            return self._jobs.get(timeout=HOLD_S)
        except queue.Empty:
            return None

    def hold_stop(self) -> None:
        self._is_stopping.wait(HOLD_S)

    def finish(self, job_id: str, body: dict[str, Any]) -> None:
        with self._is_done:
            self.results.setdefault(job_id, body)
            self._is_done.notify_all()

    def worker_environ(self) -> dict[str, str]:
        """What the platform puts into a worker's environment."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/v2/ep/job-take/$ID?gpu=cpu",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/v2/ep/job-done/$RUNPOD_POD_ID/$ID?gpu=cpu",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/v2/ep/ping/$RUNPOD_POD_ID?gpu=cpu",
            "RUNPOD_AI_API_KEY": "loopback-only-key",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_PING_INTERVAL": "5000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }


@contextmanager
def running_platform() -> Iterator[StubPlatform]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Routes)
    platform = StubPlatform(f"http://127.0.0.1:{server.server_port}")
    server.platform = platform  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield platform
    finally:
        platform.release()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running_worker(
    platform: StubPlatform, environ: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """`handler.py` under the real SDK; whatever it prints goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HANDLER)],
            cwd=log.parent,
            env={**environ, **platform.worker_environ()},
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.terminate()
            platform.release()
            process.wait(timeout=30)


class _Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def platform(self) -> StubPlatform:
        found: StubPlatform = self.server.platform  # type: ignore[attr-defined]
        return found

    def do_GET(self) -> None:
        if "/job-take" in self.path:
            self._answer(self.platform.take())
        elif "/job-stop/" in self.path:
            self.platform.hold_stop()
            self._answer(None)
        else:
            self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        job_id = self.path.partition("?")[0].rpartition("/")[2]
        self.platform.finish(job_id, body)
        self._answer({})

    def _answer(self, body: dict[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(204 if body is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: tests look at what the worker prints."""
