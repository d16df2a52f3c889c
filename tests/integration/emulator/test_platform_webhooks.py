"""The platform's own webhook, from a job's end in the SDK's worker to a receiver of HTTP."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from support.endpoint_client import EndpointClient, until

from runpod_emulator.behaviour import ExpiredInQueue
from runpod_emulator.testing import QUICK, running_emulator, settings_for

INTERVAL_S = 0.3
BEHAVIOUR = replace(QUICK, webhook_retry_interval_s=INTERVAL_S, min_execution_timeout_s=0.1)
CAPTURED_KEYS = {"delayTime", "executionTime", "id", "input", "output", "status", "webhook"}
"""Of a body that the platform has sent (runpod-python #409)."""


class Receiver:
    """Notes what is posted to it and answers with `statuses`, then with 200."""

    def __init__(self, url):
        self.url = url
        self.statuses = []
        self.received = []

    def bodies(self, job_id):
        return [body for _, _, body in self.received if body["id"] == job_id]

    def wait_for(self, job_id, count=1):
        return until(lambda: len(self.bodies(job_id)) >= count and self.bodies(job_id))


@contextmanager
def listening():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.received.append((time.monotonic(), dict(self.headers), body))
            self.send_response(heard.statuses.pop(0) if heard.statuses else 200)
            self.end_headers()

        def log_message(self, *args):
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        heard = Receiver(f"http://127.0.0.1:{server.server_port}/hook?token=t-4417")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield heard
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver():
    with listening() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def posting(handlers, tmp_path_factory):
    chosen = settings_for(
        handlers / "many_sided.py",
        tmp_path_factory.mktemp("posting"),
        behaviour=BEHAVIOUR,
        workers_min=1,
        workers_max=1,
        env={"CONCURRENCY": "10"},
    )
    with running_emulator(chosen) as emulator:
        yield emulator


@pytest.fixture
def client(posting):
    return EndpointClient(posting)


@contextmanager
def without_workers(handlers, tmp_path, **behaviour):
    chosen = settings_for(
        handlers / "many_sided.py",
        tmp_path,
        behaviour=replace(BEHAVIOUR, **behaviour),
        workers_max=0,
    )
    with running_emulator(chosen) as emulator:
        yield emulator, EndpointClient(emulator)


def test_a_completed_job_is_posted_with_its_input_and_output(client, receiver):
    asked = {"do": "give", "value": {"image": "ü"}}
    job_id = client.submit(asked, webhook=receiver.url)
    (body,) = receiver.wait_for(job_id)
    assert body.keys() == CAPTURED_KEYS | {"workerId"}
    assert (body["status"], body["input"], body["output"]) == ("COMPLETED", asked, {"image": "ü"})
    assert body["webhook"] == receiver.url
    status = client.status(job_id)
    assert {name: body[name] for name in status} == status
    ((_, headers, _),) = receiver.received
    assert headers["Content-Type"] == "application/json"


def test_runsync_posts_too(client, receiver):
    body = {"input": {"do": "give", "value": 1}, "webhook": receiver.url}
    job_id = client.post("/runsync", body).json()["id"]
    assert receiver.wait_for(job_id)[0]["output"] == 1


def test_a_failed_job_is_posted_with_its_error(client, receiver):
    job_id = client.submit({"do": "fail", "message": "broken"}, webhook=receiver.url)
    (body,) = receiver.wait_for(job_id)
    assert body.keys() == CAPTURED_KEYS - {"output"} | {"workerId", "error"}
    assert body["status"] == "FAILED"
    assert json.loads(body["error"])["error_message"] == "broken"


def test_a_job_that_took_too_long_is_posted(client, receiver):
    asked = {"do": "sleep", "seconds": 60}
    job_id = client.submit(asked, webhook=receiver.url, policy={"executionTimeout": 200})
    (body,) = receiver.wait_for(job_id)
    assert (body["status"], body["error"]) == ("FAILED", "executionTimeout exceeded")


def test_a_job_that_timed_out_in_the_queue_is_posted(handlers, tmp_path, receiver):
    behaviour = {"expired_in_queue": ExpiredInQueue.TIMED_OUT, "min_ttl_s": 0.1}
    with without_workers(handlers, tmp_path, **behaviour) as (_, client):
        job_id = client.submit(webhook=receiver.url, policy={"ttl": 100})
        assert receiver.wait_for(job_id)[0]["status"] == "TIMED_OUT"


def test_what_fails_twice_is_delivered_the_third_time(posting, client, receiver):
    receiver.statuses = [500, 404]
    job_id = client.submit({"do": "give", "value": 1}, webhook=receiver.url)
    bodies = receiver.wait_for(job_id, count=3)
    assert bodies == [bodies[0]] * 3
    at = [moment for moment, _, _ in receiver.received]
    assert all(later - earlier > 0.9 * INTERVAL_S for earlier, later in pairwise(at))
    until(lambda: posting.job(job_id)["webhook"]["delivered_at"])
    assert posting.job(job_id)["webhook"]["attempts"] == 3


def test_after_two_retries_it_is_given_up(posting, client, receiver):
    receiver.statuses = [500] * 10
    job_id = client.submit({"do": "give", "value": 1}, webhook=receiver.url)
    until(lambda: given_up(posting, job_id))
    assert len(receiver.bodies(job_id)) == 3
    assert posting.job(job_id)["webhook"]["failure"] == "HTTP 500"
    assert client.status(job_id)["status"] == "COMPLETED"


def test_only_200_is_a_delivery(posting, client, receiver):
    receiver.statuses = [204, 302, 201]
    job_id = client.submit({"do": "give", "value": 1}, webhook=receiver.url)
    until(lambda: given_up(posting, job_id))
    assert posting.job(job_id)["webhook"]["failure"] == "HTTP 201"


def test_each_end_of_a_retried_job_is_posted(client, receiver):
    job_id = client.submit({"do": "fail"}, webhook=receiver.url)
    receiver.wait_for(job_id)
    client.post(f"/retry/{job_id}")
    assert len(receiver.wait_for(job_id, count=2)) == 2


def test_a_cancelled_job_is_not_posted(posting, client, receiver, tmp_path):
    cancelled = client.submit({"do": "hold", "until": str(tmp_path / "go")}, webhook=receiver.url)
    client.post(f"/cancel/{cancelled}")
    (tmp_path / "go").touch()
    later = client.submit({"do": "give", "value": 1}, webhook=receiver.url)
    receiver.wait_for(later)
    assert receiver.bodies(cancelled) == []
    assert posting.job(cancelled)["webhook"]["next_at"] is None


def test_a_cancelled_job_is_posted_where_that_is_wished(handlers, tmp_path, receiver):
    with without_workers(handlers, tmp_path, webhook_on_cancel=True) as (_, client):
        job_id = client.submit({"a": 1}, webhook=receiver.url)
        client.post(f"/cancel/{job_id}")
        (body,) = receiver.wait_for(job_id)
        assert (body["status"], body["input"]) == ("CANCELLED", {"a": 1})


def test_a_job_that_is_over_for_its_caller_is_still_posted(handlers, tmp_path, receiver):
    """Its retention ends while the receiver refuses."""
    behaviour = {"webhook_on_cancel": True, "async_retention_s": 0.05, "webhook_retries": 1000}
    receiver.statuses = [500] * 1000
    with without_workers(handlers, tmp_path, **behaviour) as (emulator, client):
        job_id = client.submit(webhook=receiver.url)
        client.post(f"/cancel/{job_id}")
        client.wait_until_gone(job_id)
        assert not is_forgotten(emulator, job_id)
        num_refused = len(receiver.bodies(job_id))
        receiver.statuses.clear()
        until(lambda: is_forgotten(emulator, job_id))
        assert len(receiver.bodies(job_id)) > num_refused


def test_only_the_worker_and_the_receiver_get_an_address(posting, client, receiver):
    """It may carry a token."""
    receiver.statuses = [500] * 3
    job_id = client.submit({"do": "give", "value": 1}, webhook=receiver.url)
    until(lambda: given_up(posting, job_id))
    assert "t-4417" not in json.dumps([posting.state(), posting.job(job_id)])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not an address",
        "ftp://127.0.0.1/x",
        "http://127.0.0.1:1/",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1/\ud800",
    ],
)
def test_an_address_that_does_not_work_harms_no_job(client, url):
    job_id = client.submit({"do": "give", "value": 1}, webhook=url)
    assert client.wait_for(job_id, "COMPLETED")["output"] == 1


def given_up(emulator, job_id):
    webhook = emulator.job(job_id)["webhook"]
    return webhook["failure"] and webhook["next_at"] is None


def is_forgotten(emulator, job_id):
    try:
        emulator.job(job_id)
    except KeyError:
        return True
    return False
