"""The real SDK: a worker that is ended sends the ends of its jobs first, or keeps them."""

import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr
from support.stub_platform import LIMIT_S, running_stub, running_worker
from support.webhooks import SECRET

from pixpod.outputs.dead_letter import open_letter
from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import HANDLER, ScriptedWorker
from pixpod_client import verify

pytestmark = pytest.mark.sdk

TRY_S = 0.5


@contextmanager
def running_receiver():
    """Yields its port and its events by path: `/broken` answers 500 once, `/silent` never."""
    events = defaultdict(list)
    is_over = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events[self.path].append(verify(body, dict(self.headers), SECRET))
            if self.path == "/silent":
                is_over.wait(LIMIT_S)
            self.send_response(500 if len(events[self.path]) == 1 else 204)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, events
        finally:
            is_over.set()
            server.shutdown()
            thread.join()


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ends_of_jobs_are_sent_or_kept_before_the_process_exits(tmp_path):
    with running_receiver() as (port, events), running_stub() as stub:
        scripted = ScriptedWorker(
            times=ScriptedTimes(batch_s=30.0, image_s=0.0, max_batch_size=2),
            max_concurrency=2,
            webhook_secret=SECRET,
            webhook_target=f"webhook:127.0.0.1:{port}",
            webhook_try_s=TRY_S,
            output_dir=str(tmp_path / "out"),
        )
        with running_worker(stub, HANDLER, tmp_path, scripted.environ()) as worker:
            for name in ("broken", "silent"):
                given = {
                    "model": "sdxl-tiny",
                    "prompt": "a red circle",
                    "webhook_url": f"http://127.0.0.1:{port}/{name}",
                    "webhook_events": ["cancelled"],
                }
                stub.give(name, given)
            wait_until(lambda: worker.log().count("job started") == 2)
            stub.stop_job("broken")
            stub.stop_job("silent")
            wait_until(lambda: len(events) == 2)
            worker.signal()
            assert worker.wait() == 0
            log = worker.log()
    assert stub.posts.empty()
    first, second = events["/broken"]
    assert first == second
    assert (first.type, first.data) == ("cancelled", {"job_id": "broken"})
    (path,) = (tmp_path / "out").rglob("*.dead-letter")
    key = path.relative_to(tmp_path / "out").as_posix()
    letter = open_letter(path.read_bytes(), key=key, secrets=(SecretStr(SECRET),))
    assert (letter.event, letter.url) == ("cancelled", f"http://127.0.0.1:{port}/silent")
    assert letter.webhook_id == events["/silent"][0].id
    assert log.count("webhook not delivered") == log.count("dead letter written") == 1
