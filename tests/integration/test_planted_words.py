"""Nothing private of a job is shown anywhere, whatever becomes of the job."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support import planted
from support.faulty_proxy import Fault, running_proxy
from support.handlers.leaky_worker import FATES
from support.platform import submit, wait_for
from support.s3_server import running_s3

from runpod_emulator.testing import running_emulator, settings_for

pytestmark = pytest.mark.sdk

HANDLER = Path(__file__).resolve().parents[1] / "support" / "handlers" / "leaky_worker.py"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY_SECRET = "gooseberry-key-secret"
EVENTS = ["started", "progress", "completed", "failed", "cancelled"]
SUCCEEDS, RAISES, RAISES_A_GROUP, BREAKS_THE_GPU, IS_KILLED = FATES


@dataclass
class Receiver:
    """Takes webhooks and images. Paths that begin with /down are answered 503, with the request."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            body = f"<Code>{self.path}</Code>".encode()
            status = {"/down": 503, "/refused": 403}.get(urlsplit(self.path).path, 200)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = answer

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@dataclass(kw_only=True)
class Traces:
    """All that is left of the jobs."""

    logs: dict[str, str]
    replies: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    bucket: dict[str, bytes]
    folder: Path


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    state_dir, folder = tmp_path_factory.mktemp("platform"), tmp_path_factory.mktemp("worker")
    with (
        running_s3() as s3,
        running_proxy(s3.endpoint_url) as proxy,
        running_receiver() as receiver,
    ):
        environ = environ_of(s3, proxy.url, receiver.url, folder)
        settings = settings_for(HANDLER, state_dir, env=environ, workers_min=1, workers_max=1)
        with running_emulator(settings) as platform:
            replies = run_all(platform, jobs_at_once(receiver.url, s3))
            for name, job in jobs_alone(receiver.url).items():
                is_down = name == "bucket that is down"
                proxy.faults, proxy.faulty_method = [Fault.FORBIDDEN] * 99 * is_down, "PUT"
                replies |= run_all(platform, {name: job})
            proxy.faults = []
        yield Traces(
            logs={each.name: each.read_text() for each in (state_dir / "logs").glob("*.log")},
            replies=replies,
            events=[json.loads(body) for body in receiver.bodies if body.startswith(b"{")],
            bucket={key: s3.get(key)["Body"] for key in s3.all_keys()},
            folder=folder,
        )


def environ_of(s3, endpoint_url, receiver_url, folder):
    for name in ("volume", "output", "spool", "tmp"):
        (folder / name).mkdir()
    host, s3_host = urlsplit(receiver_url).netloc, urlsplit(s3.endpoint_url).netloc
    return {
        "PIXPOD_MODELS": "sdxl-tiny",
        "PIXPOD_S3_BUCKET": s3.bucket,
        "PIXPOD_S3_ENDPOINT_URL": endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": s3.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "PIXPOD_KEY_SECRET": KEY_SECRET,
        "PIXPOD_WEBHOOK_SECRETS": SECRET,
        "PIXPOD_ALLOW_TARGETS": f"write:{host},webhook:{host},write:{s3_host}",
        "PIXPOD_VOLUME_DIR": str(folder / "volume"),
        "PIXPOD_OUTPUT_DIR": str(folder / "output"),
        "PIXPOD_SPOOL_DIR": str(folder / "spool"),
        "PIXPOD_MAX_REPLY_BYTES": "2000",
        "TMPDIR": str(folder / "tmp"),
        "RUNPOD_LOG_LEVEL": "DEBUG",
    }


def run_all(platform, jobs):
    ids = {name: submit(platform, job) for name, job in jobs.items()}
    return {name: wait_for(platform, job_id) for name, job_id in ids.items()}


def jobs_at_once(receiver_url, s3):
    """Return jobs by name that run side by side."""
    webhook, down = webhook_of(receiver_url), webhook_of(receiver_url, "/down")
    put = {"put_urls": [planted.put_url(f"{receiver_url}/image")]}
    put_refused = {"put_urls": [planted.put_url(f"{receiver_url}/refused")]}
    bucket = {"endpointUrl": s3.endpoint_url, "bucketName": s3.bucket}
    right = {"accessId": s3.access_key_id, "accessSecret": s3.secret_access_key}
    return {
        "bucket": job(SUCCEEDS, **webhook, num_inference_steps=50),
        "webhook that is down": job(SUCCEEDS, **down, idempotency_key="kumquat-2"),
        "put": job(SUCCEEDS, output=put, **webhook),
        "put that is refused": job(SUCCEEDS, output=put_refused, **webhook),
        "s3Config": job(SUCCEEDS, s3_config={**bucket, **right}),
        "s3Config that is denied": job(SUCCEEDS, s3_config={**bucket, **planted.S3_CONFIG}),
        "refused": {"input": {"model": "sdxl-tiny", **planted.REFUSED, **webhook}},
        "refused places": job(
            SUCCEEDS,
            output={"put_urls": [planted.put_url("http://[::1]/")]},
            s3_config=planted.S3_CONFIG,
        ),
        "raises": job(RAISES, output=put, **webhook),
        "raises a group": job(RAISES_A_GROUP, **webhook, idempotency_key="kumquat-3"),
    }


def jobs_alone(receiver_url):
    """Return jobs by name that run one after the other; the last one ends the worker."""
    webhook, down = webhook_of(receiver_url), webhook_of(receiver_url, "/down")
    return {
        "the same again": job(SUCCEEDS, **webhook, num_inference_steps=50),
        "bucket that is down": job(SUCCEEDS, **down, idempotency_key="kumquat-4"),
        "is killed": job(IS_KILLED, **webhook, idempotency_key="kumquat-5"),
        "breaks the GPU": job(BREAKS_THE_GPU, **webhook, idempotency_key="kumquat-6"),
    }


def webhook_of(receiver_url, path="/hook"):
    return {"webhook_url": planted.webhook_url(f"{receiver_url}{path}"), "webhook_events": EVENTS}


def job(fate, *, output=None, s3_config=None, **fields):
    """Return a job with words in all that it may have at its place."""
    options = {"key_prefix": f"customers/{planted.TENANT}", **(output or {})}
    given = {"model": "sdxl-tiny", **planted.FIELDS, "seed": fate, "num_inference_steps": 3}
    if output or s3_config:
        del given["idempotency_key"]
    given |= {"output": options, **fields}
    return {"input": given} | ({"s3Config": s3_config} if s3_config else {})


OUTCOMES = {
    "bucket": "COMPLETED",
    "the same again": "COMPLETED",
    "webhook that is down": "COMPLETED",
    "put": "COMPLETED",
    "put that is refused": "COMPLETED",
    "s3Config": "COMPLETED",
    "s3Config that is denied": "COMPLETED",
    "bucket that is down": "storage_denied",
    "refused": "invalid_input",
    "refused places": "invalid_input",
    "raises": "internal_error",
    "raises a group": "internal_error",
    "is killed": "COMPLETED",
    "breaks the GPU": "device_unavailable",
}


def test_jobs_end_as_they_were_meant_to(traces):
    ends = {
        name: reply.get("error", reply["status"]).partition(":")[0]
        for name, reply in traces.replies.items()
    }
    assert ends == OUTCOMES


LEAKS = (
    *("logger", "handler", "stdout", "stderr", "warning", "url", "traceback", "SDK", "SDK, cut"),
    *("thread", "loop", "later"),
)


def test_worker_has_leaked_in_each_way(traces):
    printed = "".join(traces.logs.values())
    assert [leak for leak in LEAKS if f"LEAK {leak}:" not in printed] == []
    assert "no image for" in printed
    assert "Exception Group Traceback" in printed
    assert "CUDA: " in printed


def test_log_shows_nothing(traces):
    words = (*planted.PROMPTS, *planted.CREDENTIALS, planted.TENANT, KEY_SECRET, SECRET)
    words += ("Signature=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    shown = {
        f"{name}:{number}": (found, line[:300])
        for name, text in traces.logs.items()
        for number, line in enumerate(text.splitlines())
        if (found := planted.words_in(line.replace("Signature=***", ""), words))
    }
    assert shown == {}


def test_lines_of_the_worker_are_still_json(traces):
    lines = [line for text in traces.logs.values() for line in text.splitlines()]
    ours = [line for line in lines if line.startswith('{"time"')]
    assert len(ours) > 20
    assert all(json.loads(line)["logger"] for line in ours)
    assert any("job started" in line for line in ours)


@pytest.mark.parametrize("name", OUTCOMES)
def test_reply_shows_nothing(traces, name):
    assert planted.words_in_document(traces.replies[name]) == []


def test_events_show_nothing(traces):
    assert {event["type"] for event in traces.events} == {*EVENTS} - {"cancelled"}
    shown = [(event["type"], planted.words_in_document(event)) for event in traces.events]
    assert [each for each in shown if each[1]] == []


def test_files_in_the_bucket_show_nothing(traces):
    results = [key for key in traces.bucket if key.endswith(".result")]
    letters = [key for key in traces.bucket if key.endswith(".dead-letter")]
    images = [key for key in traces.bucket if key.endswith(".png")]
    assert len(results) >= 3
    assert len(letters) >= 1
    assert len(images) >= 4
    shown = {
        key: found for key, data in traces.bucket.items() if (found := planted.words_in_file(data))
    }
    assert shown == {}
    assert (
        planted.words_in("\n".join(traces.bucket), (*planted.PROMPTS, *planted.CREDENTIALS)) == []
    )


def test_files_of_the_worker_show_nothing(traces):
    spooled = [path.suffix for path in (traces.folder / "spool").rglob("*") if path.is_file()]
    assert len(spooled) >= 2, "an image, and the file of its job"
    assert list(planted.words_below(traces.folder)) == []


def test_words_are_found_where_they_are(traces):
    """Images may show prompts: the search finds them."""
    (image, *_) = [data for key, data in traces.bucket.items() if key.endswith(".png")]
    assert planted.words_in(image, ("zanzibar",)) == ["zanzibar"]
