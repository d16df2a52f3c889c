"""The client API over plain HTTP: every operation, field, unit, limit and refusal.

Whatever needs no result runs on endpoints that may have no worker, so that jobs stay queued.
"""

import gzip
import json
import os
import re
import sqlite3
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from urllib.parse import quote

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from support.endpoint_client import IDLE_COMMAND, EndpointClient, HandWorker, until, worked_by_hand

from runpod_emulator.behaviour import EmptyInput, ExpiredInQueue, Purged
from runpod_emulator.testing import QUICK, running_emulator, settings_for

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

SHORT_LIVED = replace(
    QUICK,
    min_ttl_s=0.1,
    min_execution_timeout_s=0.1,
    async_retention_s=1.0,
    sync_retention_s=0.1,
)


@pytest.fixture(scope="module")
def queueing(handlers, tmp_path_factory):
    """Two endpoints, `test` and `other`, that never get a worker."""
    chosen = settings_for(
        handlers / "many_sided.py",
        tmp_path_factory.mktemp("queueing"),
        behaviour=replace(QUICK, queue_limit=False),
        workers_max=0,
        rate_limits=False,
    )
    (endpoint,) = chosen.endpoints
    with running_emulator(
        replace(chosen, endpoints=(endpoint, replace(endpoint, id="other")))
    ) as emulator:
        yield emulator


@pytest.fixture
def client(queueing):
    return EndpointClient(queueing)


@pytest.fixture
def queueing_with(handlers, tmp_path):
    """Makes an emulator without workers that behaves as a test wants it."""

    def start(behaviour=QUICK, **choices):
        chosen = settings_for(
            handlers / "many_sided.py", tmp_path, behaviour=behaviour, workers_max=0, **choices
        )
        return EndpointClient(running.enter_context(running_emulator(chosen)))

    with ExitStack() as running:
        yield start


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("working")


@pytest.fixture(scope="module")
def working(handlers, working_dir):
    """An endpoint with one real worker that runs ten jobs at once."""
    behaviour = replace(QUICK, min_ttl_s=0.1, min_execution_timeout_s=0.1, max_result_bytes=50_000)
    chosen = settings_for(
        handlers / "many_sided.py",
        working_dir,
        behaviour=behaviour,
        workers_min=1,
        workers_max=1,
        rate_limits=False,
        env={"CONCURRENCY": "10"},
    )
    with running_emulator(chosen) as emulator:
        yield emulator


@pytest.fixture
def worked(working):
    return EndpointClient(working)


# Who may ask


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "{}"])
def test_the_key_may_be_sent_bare_or_as_bearer(queueing, client, form):
    headers = {"Authorization": form.format(queueing.api_key)}
    assert client.request("GET", "/health", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}])
def test_without_a_key_the_answer_is_the_platforms_plain_text(client, headers):
    answer = client.request("GET", "/health", headers=headers)
    assert (answer.status_code, answer.text) == (401, "no token provided")
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("key", [b"wrong", b"Bearer wrong", b"Bearer \xff\xfe", b"Basic dGVzdA=="])
def test_a_wrong_key_is_unauthorised(client, key):
    assert client.request("GET", "/health", headers={"Authorization": key}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/run"),
        ("POST", "/runsync"),
        ("GET", "/status/x"),
        ("POST", "/status-sync/x"),
        ("GET", "/stream/x"),
        ("POST", "/cancel/x"),
        ("POST", "/retry/x"),
        ("POST", "/purge-queue"),
        ("GET", "/health"),
        ("GET", "/requests"),
        ("GET", "/metrics"),
    ],
)
def test_every_operation_needs_the_key(client, method, path):
    assert client.request(method, path, headers={}, json={"input": 1}).status_code == 401


def test_an_unknown_endpoint_is_not_found(queueing):
    answer = EndpointClient(queueing, "nowhere").get("/health")
    assert (answer.status_code, answer.json()) == (404, {"error": "endpoint not found"})


@pytest.mark.parametrize("path", ["/status/nobody", "/status-sync/nobody", "/stream/nobody"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_job_is_not_found(client, method, path):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"error": "job not found"})


@pytest.mark.parametrize("path", ["/cancel/nobody", "/retry/nobody"])
def test_an_unknown_job_can_be_neither_cancelled_nor_retried(client, path):
    assert client.post(path).status_code == 404


def test_an_unknown_path_is_refused_in_json(queueing, client):
    answers = [client.get("/nothing"), requests.get(f"{queueing.url}/nothing", timeout=10)]
    for answer in answers:
        assert answer.status_code == 404
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json() == {"error": "Not Found"}


def test_a_wrong_method_is_refused_in_json(client):
    answer = client.get("/run")
    assert answer.status_code == 405
    assert answer.json() == {"error": "Method Not Allowed"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.0.1", 403),
        ("localhost", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("localhost.:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
    ],
)
def test_only_names_of_this_machine_are_answered(queueing, client, host, status):
    headers = {"Authorization": queueing.api_key, "Host": host}
    answer = client.request("GET", "/health", headers=headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")


def test_endpoints_of_one_emulator_share_nothing(queueing, client):
    other = EndpointClient(queueing, "other")
    queued_before = other.get("/health").json()["jobs"]["inQueue"]
    job_id = client.submit()
    assert other.get(f"/status/{job_id}").status_code == 404
    assert other.get(f"/stream/{job_id}").status_code == 404
    assert other.post(f"/cancel/{job_id}").status_code == 404
    assert other.post(f"/retry/{job_id}").status_code == 404
    assert other.get("/health").json()["jobs"]["inQueue"] == queued_before
    assert job_id not in {each["id"] for each in other.get("/requests").json()["requests"]}
    other.post("/purge-queue")
    assert client.status(job_id)["status"] == "IN_QUEUE"


# run, runsync and what they accept


def test_run_answers_with_id_and_status_only(client):
    answer = client.post("/run", {"input": {"prompt": "x"}})
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json().keys() == {"id", "status"}
    assert answer.json()["status"] == "IN_QUEUE"
    assert re.fullmatch(f"{UUID}-u1", answer.json()["id"])


def test_runsync_answers_after_its_wait_with_the_job_as_it_is_then(client):
    began = time.monotonic()
    answer = client.post("/runsync", {"input": {"prompt": "x"}}, wait=1000).json()
    assert time.monotonic() - began >= 1.0
    assert answer.keys() == {"id", "status"}
    assert answer["status"] == "IN_QUEUE"
    assert re.fullmatch(f"sync-{UUID}-u1", answer["id"])


def test_a_wait_below_the_least_is_brought_to_it(client):
    began = time.monotonic()
    client.post("/runsync", {"input": 1}, wait=0)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("wait", ["90000", "300000", "999999999"])
def test_a_long_wait_ends_with_the_job(client, wait):
    """Whatever is above the most is brought to it, not refused."""
    job_id = client.submit()
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(client.get(f"/status-sync/{job_id}", wait=wait).json())
    )
    waiting.start()
    client.post(f"/cancel/{job_id}")
    waiting.join(10)
    assert answers[0]["status"] == "CANCELLED"


@pytest.mark.parametrize("wait", ["", "soon", "-1", "1.5", "1e3", "9" * 16])
def test_a_wait_that_is_no_number_of_milliseconds_is_refused(client, wait):
    answer = client.post("/runsync", {"input": 1}, wait=wait)
    assert answer.status_code == 400
    assert "wait" in answer.json()["error"]


@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"a": [1, {"b": "ü"}]}, "text", True])
def test_input_may_be_any_json_value(client, value):
    assert client.post("/run", {"input": value}).status_code == 200


def test_keys_that_are_unknown_are_ignored(client):
    body = {"input": 1, "surprise": {"a": 1}, "policy": {"surprise": 1}}
    assert client.post("/run", body).status_code == 200


@pytest.mark.parametrize("path", ["/run", "/runsync"])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"NaN", "body"),
        (b'{"input": NaN}', "body"),
        (b'{"input": 1e999}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"input": ' + b"9" * 5000 + b"}", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b"{}", "input"),
        (b'{"inputs": 1}', "input"),
        (b'{"input": 1, "webhook": 5}', "webhook"),
        (b'{"input": 1, "s3Config": "x"}', "s3Config"),
        (b'{"input": 1, "policy": 5}', "policy"),
        (b'{"input": 1, "policy": {"ttl": "1m"}}', "policy.ttl"),
        (b'{"input": 1, "policy": {"ttl": 9999}}', "policy.ttl"),
        (b'{"input": 1, "policy": {"ttl": -1}}', "policy.ttl"),
        (b'{"input": 1, "policy": {"executionTimeout": 4999}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"executionTimeout": true}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"lowPriority": "yes"}}', "policy.lowPriority"),
        (b'{"input": 1, "policy": {"ttl": ' + b"9" * 400 + b"}}", "policy.ttl"),
    ],
)
def test_a_refused_body_is_answered_with_the_field(client, path, body, named):
    answer = client.request("POST", path, data=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(named)


def test_json_that_is_nested_too_deeply_is_named_as_such(client):
    body = b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    answer = client.request("POST", "/run", data=body)
    expected = "body: expected JSON of fewer levels, got more than can be read"
    assert (answer.status_code, answer.json()["error"]) == (400, expected)


@pytest.mark.parametrize("policy", [{"ttl": 10_000}, {"executionTimeout": 5_000}])
def test_the_least_times_of_a_policy_are_accepted(queueing, client, policy):
    job_id = client.submit(policy=policy)
    kept = queueing.job(job_id)["policy"]
    assert kept["ttl_s"] == policy.get("ttl", 86_400_000) / 1000
    assert kept["execution_timeout_s"] == policy.get("executionTimeout", 600_000) / 1000


def test_seven_days_are_not_enforced_unless_wished(client, queueing_with):
    policy = {"ttl": 8 * 86_400_000}
    client.submit(policy=policy)
    strict = queueing_with(replace(QUICK, enforce_max_policy=True))
    answer = strict.post("/run", {"input": 1, "policy": policy})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("policy.ttl: expected 10000 to 604800000 ms")
    strict.submit(policy={"ttl": 7 * 86_400_000})


def test_the_size_of_a_body_is_limited(client):
    """10 MB for run and 20 MB for runsync; the text around the padding takes 10 bytes."""
    for path, most, query in (("/run", 10_000_000, ""), ("/runsync", 20_000_000, "?wait=1000")):
        fits = b'{"input":"' + b"x" * (most - 12) + b'"}'
        assert client.request("POST", path + query, data=fits).status_code == 200
        refused = client.request("POST", path, data=fits + b" ")
        assert refused.status_code == 400
        assert refused.json()["error"] == (f"body: expected at most {most} bytes, got {most + 1}")
    client.post("/purge-queue")


def test_a_body_of_undeclared_size_is_limited_as_well(client):
    pieces = (b"x" * 1_000_000 for _ in range(11))
    assert client.request("POST", "/run", data=pieces).status_code == 400


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(b'{"input": 1}'), 200),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b'{"input": "' + b"x" * 10_000_000 + b'"}'), 400),
        ("br", b"no brotli", 400),
    ],
    ids=["small", "no gzip", "large", "no brotli"],
)
def test_a_compressed_body_is_limited_by_what_it_holds(client, encoding, body, status):
    headers = {"Content-Encoding": encoding, "Authorization": "test-key"}
    answer = client.request("POST", "/run", data=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")


def test_the_status_of_a_body_that_is_too_large_is_a_choice(queueing_with):
    strict = queueing_with(replace(QUICK, max_run_bytes=100, oversize_status=413))
    assert strict.post("/run", {"input": "x" * 100}).status_code == 413


@pytest.mark.parametrize("wrapped", [{"input": {}}, {"input": {"input": {"a": 1}}}])
def test_an_input_that_goes_wrong_in_production_is_reported(queueing, client, wrapped):
    job_id = client.post("/run", wrapped).json()["id"]
    kinds = {"empty-input", "double-wrapped-input"}
    found = [
        each["kind"]
        for each in queueing.state()["hazards"]["recent"]
        if each["job_id"] == job_id and each["kind"] in kinds
    ]
    assert found == ["empty-input" if wrapped == {"input": {}} else "double-wrapped-input"]


# What happens in the queue


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_status_and_stream_of_a_queued_job_answer_to_get_and_post(client, method):
    job_id = client.submit()
    expected = {"id": job_id, "status": "IN_QUEUE"}
    assert client.request(method, f"/status/{job_id}").json() == expected
    assert client.request(method, f"/status-sync/{job_id}?wait=1000").json() == expected
    stream = client.request(method, f"/stream/{job_id}")
    assert stream.json() == {**expected, "stream": []}


def test_a_queued_job_is_cancelled_at_once(client):
    job_id = client.submit()
    answer = client.post(f"/cancel/{job_id}")
    assert answer.json() == {"id": job_id, "status": "CANCELLED"}
    ended = client.status(job_id)
    assert ended["status"] == "CANCELLED"
    assert "output" not in ended
    assert "error" not in ended


def test_cancelling_twice_changes_nothing(client):
    job_id = client.submit()
    client.post(f"/cancel/{job_id}")
    assert client.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}


def test_a_cancelled_job_cannot_be_retried(client):
    job_id = client.submit()
    client.post(f"/cancel/{job_id}")
    answer = client.post(f"/retry/{job_id}")
    assert answer.status_code == 400
    assert "CANCELLED" in answer.json()["error"]


def test_the_stream_of_a_cancelled_job_ends_with_nothing(queueing, client):
    """What makes the SDK's `stream()` ask for ever; the emulator says so."""
    job_id = client.submit()
    client.post(f"/cancel/{job_id}")
    for _ in range(2):
        answer = client.get(f"/stream/{job_id}").json()
        assert (answer["status"], answer["stream"]) == ("CANCELLED", [])
    hazards = queueing.state()["hazards"]["recent"]
    assert ("endless-stream", job_id) in {(each["kind"], each["job_id"]) for each in hazards}


def test_purge_tells_how_many_it_removed(queueing_with):
    purged = queueing_with()
    job_ids = [purged.submit() for _ in range(3)]
    answer = purged.post("/purge-queue")
    assert answer.json() == {"removed": 3, "status": "completed"}
    assert [purged.status(each)["status"] for each in job_ids] == ["CANCELLED"] * 3
    assert purged.post("/purge-queue").json() == {"removed": 0, "status": "completed"}
    assert purged.get("/health").json()["jobs"]["inQueue"] == 0


def test_purged_jobs_can_be_deleted_instead(queueing_with):
    purged = queueing_with(replace(QUICK, purged=Purged.DELETED))
    job_id = purged.submit()
    assert purged.post("/purge-queue").json()["removed"] == 1
    assert purged.get(f"/status/{job_id}").status_code == 404


def test_health_has_every_counter(client):
    health = client.get("/health").json()
    assert health.keys() == {"jobs", "workers"}
    assert health["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert health["workers"].keys() == {
        "idle",
        "initializing",
        "ready",
        "running",
        "throttled",
        "unhealthy",
    }
    counters = [*health["jobs"].values(), *health["workers"].values()]
    assert all(type(each) is int for each in counters)


def test_requests_lists_the_newest_job_first(client):
    older, newer = client.submit(), client.submit()
    listed = [each["id"] for each in client.get("/requests").json()["requests"]]
    assert listed[:2] == [newer, older]


def test_low_priority_jobs_call_for_no_worker(handlers, tmp_path):
    """On an endpoint for whose workers there is no GPU, so that none really starts."""
    chosen = settings_for(handlers / "many_sided.py", tmp_path, capacity=0, workers_max=1)
    with running_emulator(chosen) as emulator:
        client = EndpointClient(emulator)
        client.submit(policy={"lowPriority": True})
        submitted_at = emulator.state()["now"]
        settled = emulator.wait_until(lambda state: state["now"] > submitted_at + 0.5)
        assert settled["endpoints"]["test"]["workers"] == []
        client.submit()
        emulator.wait_until(lambda state: state["endpoints"]["test"]["workers"])
        assert client.get("/health").json()["workers"]["throttled"] == 1
        assert client.get("/health").json()["jobs"]["inQueue"] == 2


# How long jobs are kept


def test_a_job_is_forgotten_at_the_end_of_its_ttl(queueing_with):
    client = queueing_with(SHORT_LIVED)
    short, long = client.submit(policy={"ttl": 200}), client.submit(policy={"ttl": 60_000})
    client.wait_until_gone(short)
    assert client.post(f"/cancel/{short}").status_code == 404
    assert client.get("/health").json()["jobs"]["inQueue"] == 1
    assert client.status(long)["status"] == "IN_QUEUE"


def test_a_job_whose_ttl_ends_in_the_queue_can_be_timed_out_instead(queueing_with):
    behaviour = replace(
        SHORT_LIVED, expired_in_queue=ExpiredInQueue.TIMED_OUT, async_retention_s=60.0
    )
    client = queueing_with(behaviour)
    job_id = client.submit(policy={"ttl": 200})
    client.wait_for(job_id, "TIMED_OUT")
    assert client.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}


def test_status_can_set_the_ttl_of_a_job(client):
    job_id = client.submit()
    assert client.get(f"/status/{job_id}", ttl=0).status_code == 200
    client.wait_until_gone(job_id)


@pytest.mark.parametrize("ttl", ["", "soon", "-5"])
def test_a_ttl_that_is_no_number_of_milliseconds_is_refused(client, ttl):
    job_id = client.submit()
    answer = client.get(f"/status/{job_id}", ttl=ttl)
    assert answer.status_code == 400
    assert "ttl" in answer.json()["error"]
    assert client.status(job_id)["status"] == "IN_QUEUE"


def test_results_are_kept_for_a_time_that_depends_on_the_operation(queueing_with):
    client = queueing_with(replace(SHORT_LIVED, async_retention_s=60.0))
    kept = client.submit()
    forgotten = client.post("/runsync", {"input": 1}, wait=1000).json()["id"]
    for job_id in (kept, forgotten):
        client.post(f"/cancel/{job_id}")
    client.wait_until_gone(forgotten)
    assert client.status(kept)["status"] == "CANCELLED"


def test_results_of_run_are_forgotten_too(queueing_with):
    client = queueing_with(SHORT_LIVED)
    job_id = client.submit()
    assert client.post(f"/cancel/{job_id}").status_code == 200
    client.wait_until_gone(job_id)


# How much is accepted


def test_more_requests_than_documented_get_a_time_to_retry(queueing_with):
    client = queueing_with()
    answers = [client.post("/purge-queue") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 10
    assert answers[2].json()["error"] == (
        "purge-queue: at most 2 requests in 10 s for one endpoint; "
        "--no-rate-limits lifts this limit"
    )


def test_limits_of_one_operation_do_not_touch_another(queueing_with):
    client = queueing_with()
    refused = [client.get("/requests").status_code for _ in range(11)]
    assert refused == [200] * 10 + [429]
    assert client.get("/health").status_code == 200
    assert client.post("/purge-queue").status_code == 200


def test_a_full_queue_refuses_further_jobs(queueing_with):
    """Fifty jobs and five hundred for each worker that there may be; here there may be none."""
    client = queueing_with()
    for _ in range(51):
        client.submit()
    refused = client.post("/run", {"input": 1})
    assert (refused.status_code, refused.json()["error"]) == (
        429,
        "run: at most 50 queued jobs for one endpoint, 51 are queued; "
        "--no-rate-limits or --behaviour queue_limit=false lifts this limit",
    )
    client.post("/purge-queue")
    client.submit()


@pytest.mark.parametrize(
    "choices", [{"behaviour": replace(QUICK, queue_limit=False)}, {"rate_limits": False}]
)
def test_the_limit_of_the_queue_can_be_switched_off(queueing_with, choices):
    client = queueing_with(**choices)
    for _ in range(52):
        client.submit()


# What a worker makes of it


def test_a_finished_job_has_every_field(working, worked):
    job_id = worked.submit({"do": "give", "value": {"a": [1, "ü"]}})
    ended = worked.wait_for(job_id, "COMPLETED")
    assert ended.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert type(ended["delayTime"]) is int
    assert type(ended["executionTime"]) is int
    assert ended["workerId"] in {each["id"] for each in workers_of(working.state())}
    assert ended["output"] == {"a": [1, "ü"]}


def test_times_are_milliseconds(worked):
    ended = worked.post("/runsync", {"input": {"do": "sleep", "seconds": 0.3}}).json()
    assert 300 <= ended["executionTime"] < 30_000
    assert 0 <= ended["delayTime"] < 30_000


def test_a_running_job_has_neither_execution_time_nor_output(worked, tmp_path):
    job_id = worked.submit({"do": "hold", "until": str(tmp_path / "go")})
    running = worked.wait_for(job_id, "IN_PROGRESS")
    assert running.keys() == {"id", "status", "delayTime", "workerId"}
    (tmp_path / "go").touch()
    worked.wait_for(job_id, "COMPLETED")


def test_a_failed_job_has_an_error_and_no_output(worked):
    job_id = worked.submit({"do": "fail", "message": "no such scheduler"})
    ended = worked.wait_for(job_id, "FAILED")
    assert ended.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "error"}
    assert json.loads(ended["error"])["error_message"] == "no such scheduler"


@pytest.mark.parametrize("path", ["/runsync", "/runsync?wait=5000"])
def test_runsync_answers_with_the_result(worked, path):
    answer = worked.post(path, {"input": {"do": "give", "value": 7}}).json()
    assert (answer["status"], answer["output"]) == ("COMPLETED", 7)
    assert worked.status(answer["id"]) == answer


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_status_sync_waits_for_the_result(worked, method):
    job_id = worked.submit({"do": "sleep", "seconds": 0.3})
    answer = worked.request(method, f"/status-sync/{job_id}").json()
    assert (answer["status"], answer["output"]) == ("COMPLETED", "slept")


def test_a_job_may_not_run_longer_than_its_own_policy_says(worked):
    asked = {"do": "sleep", "seconds": 60}
    job_id = worked.submit(asked, policy={"executionTimeout": 200})
    ended = worked.wait_for(job_id, "FAILED")
    assert ended["error"] == "executionTimeout exceeded"
    assert ended["executionTime"] >= 200


def test_a_job_is_forgotten_at_the_end_of_its_ttl_though_it_runs(working, worked, tmp_path):
    job_id, worker_id = job_that_runs(worked, tmp_path)
    assert worked.get(f"/status/{job_id}", ttl=0).status_code == 200
    worked.wait_until_gone(job_id)
    idle = working.wait_until(lambda state: not any(each["jobs"] for each in workers_of(state)))
    assert [each["id"] for each in workers_of(idle)] == [worker_id]


def test_a_running_job_is_cancelled(working, worked, tmp_path):
    job_id, worker_id = job_that_runs(worked, tmp_path)
    assert worked.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    idle = working.wait_until(lambda state: not any(each["jobs"] for each in workers_of(state)))
    assert [each["id"] for each in workers_of(idle)] == [worker_id]
    assert worked.status(job_id)["status"] == "CANCELLED"


def test_an_ended_job_is_neither_cancelled_nor_retried(worked):
    ended = worked.post("/runsync", {"input": {"do": "give"}}).json()
    assert worked.post(f"/cancel/{ended['id']}").json()["status"] == "COMPLETED"
    assert worked.post(f"/retry/{ended['id']}").status_code == 400
    assert worked.status(ended["id"]) == ended


def test_a_result_that_is_too_large_leaves_a_completed_job_without_output(working, worked):
    job_id = worked.submit({"do": "give_text", "num_bytes": 60_000})
    ended = worked.wait_for(job_id, "COMPLETED")
    assert "output" not in ended
    found = {(each["kind"], each["job_id"]) for each in working.state()["hazards"]["recent"]}
    assert ("oversize-result", job_id) in found


def test_health_counts_what_has_ended(worked):
    before = worked.get("/health").json()["jobs"]
    worked.post("/runsync", {"input": {"do": "give"}})
    worked.post("/runsync", {"input": {"do": "fail"}})
    after = worked.get("/health").json()["jobs"]
    assert after["completed"] == before["completed"] + 1
    assert after["failed"] == before["failed"] + 1


def test_health_counts_what_runs(worked, tmp_path):
    job_id = worked.submit({"do": "hold", "until": str(tmp_path / "go")})
    worked.wait_for(job_id, "IN_PROGRESS")
    health = worked.get("/health").json()
    assert health["jobs"]["inProgress"] == 1
    assert (health["workers"]["running"], health["workers"]["idle"]) == (1, 0)
    (tmp_path / "go").touch()
    worked.wait_for(job_id, "COMPLETED")
    until(lambda: worked.get("/health").json()["workers"]["idle"] == 1)
    assert worked.get("/health").json()["workers"]["ready"] == 1


def test_metrics_name_the_workers_that_are_ready(working, worked):
    worked.post("/runsync", {"input": {"do": "give"}})
    answer = worked.get("/metrics").json()
    assert answer["readyWorkers"] == [each["id"] for each in workers_of(working.state())]
    assert answer["workers"] == worked.get("/health").json()["workers"]


def test_a_secret_of_the_caller_ends_with_its_job(working, worked, working_dir):
    """It is in no record, no snapshot and nothing that the SDK's worker printed."""
    secrets = {"accessId": "id-7f3a91", "accessSecret": "secret-5bd20c"}
    job_id = worked.submit(
        {"do": "give"}, s3Config={**secrets, "bucketName": "b", "endpointUrl": "http://s3"}
    )
    worked.wait_for(job_id, "COMPLETED")
    assert not working.job(job_id)["has_s3_config"]
    kept = "".join(map(json.dumps, (working.state(), working.job(job_id)))).encode()
    with closing(sqlite3.connect(f"file:{working_dir / 'jobs.db'}?mode=ro", uri=True)) as db:
        kept += "".join(record for (record,) in db.execute("SELECT record FROM jobs")).encode()
    kept += b"".join(each.read_bytes() for each in (working_dir / "logs").iterdir())
    assert job_id.encode() in kept
    assert not [secret for secret in secrets.values() if secret.encode() in kept]


def test_the_state_directory_is_its_owners_alone(tmp_path):
    settings = settings_for(tmp_path / "handler.py", tmp_path / "new" / "state")
    before = os.umask(0)
    try:
        with running_emulator(settings):
            made = [settings.state_dir, *settings.state_dir.rglob("*")]
            modes = {path.name: path.stat().st_mode & 0o777 for path in made}
    finally:
        os.umask(before)
    assert modes["state"] == 0o700
    assert {"jobs.db", "jobs.db-wal", "jobs.db-shm"} <= modes.keys()
    assert not [name for name, mode in modes.items() if mode & 0o077]


def test_a_job_retried_after_its_end_runs_without_s3_config_and_a_hazard_says_so(by_hand):
    emulator, client, worker = by_hand()
    job_id = client.submit([1], s3Config={"bucketName": "b"})
    assert worker.take()["s3Config"] == {"bucketName": "b"}
    worker.done(job_id, error="full")
    assert client.post(f"/retry/{job_id}").status_code == 200
    assert worker.take() == {"id": job_id, "input": [1]}
    assert emulator.state()["hazards"]["counts"] == {"retry-without-s3config": 1}


# What a worker makes of it, at the moment that a test chooses


@pytest.fixture
def by_hand(tmp_path):
    """Makes an endpoint and its only worker, for which the test speaks."""
    with ExitStack() as running:
        yield lambda **behaviour: running.enter_context(worked_by_hand(tmp_path, **behaviour))


def test_a_worker_gets_s3_config_and_webhook_and_nothing_else(by_hand):
    _, client, worker = by_hand()
    s3_config = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "d"}
    webhook = "http://127.0.0.1:9/hook"
    job_id = client.submit([1, 2], s3Config=s3_config, webhook=webhook, policy={"ttl": 60_000})
    expected = {"id": job_id, "input": [1, 2], "s3Config": s3_config, "webhook": webhook}
    assert worker.take() == expected


def test_a_retried_job_keeps_its_id_and_input_and_loses_its_output(by_hand):
    emulator, client, worker = by_hand()
    job_id = client.submit({"seed": 5})
    worker.take()
    worker.stream(job_id, "half")
    worker.done(job_id, error="bad luck", output={"so_far": 1})
    failed = client.status(job_id)
    assert (failed["status"], failed["error"]) == ("FAILED", "bad luck")
    assert failed["output"] == {"so_far": 1}
    assert client.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert client.status(job_id) == {"id": job_id, "status": "IN_QUEUE"}
    assert client.get(f"/stream/{job_id}").json()["stream"] == []
    assert worker.take() == {"id": job_id, "input": {"seed": 5}}
    worker.done(job_id, output="better")
    ended = client.status(job_id)
    assert (ended["status"], ended["output"]) == ("COMPLETED", "better")
    assert "error" not in ended
    assert emulator.job(job_id)["executions"] == 2


def test_a_job_that_took_too_long_can_be_timed_out_and_retried(by_hand):
    _, client, worker = by_hand(min_execution_timeout_s=0.1, execution_timeout_status="TIMED_OUT")
    job_id = client.submit(policy={"executionTimeout": 100})
    worker.take()
    assert client.wait_for(job_id, "TIMED_OUT")["error"] == "executionTimeout exceeded"
    assert client.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}


def test_a_job_can_be_retried_only_while_its_result_is_kept(by_hand):
    _, client, worker = by_hand(async_retention_s=0.2)
    job_id = client.submit()
    worker.take()
    worker.done(job_id, error="bad luck")
    client.wait_until_gone(job_id)
    assert client.post(f"/retry/{job_id}").status_code == 404


def test_streamed_items_are_handed_out_once_and_in_order(by_hand):
    _, client, worker = by_hand()
    job_id = client.submit()
    worker.take()
    worker.stream(job_id, 1)
    worker.stream(job_id, {"two": 2})
    first = client.get(f"/stream/{job_id}").json()
    assert (first["status"], first["stream"]) == (
        "IN_PROGRESS",
        [{"output": 1}, {"output": {"two": 2}}],
    )
    worker.stream(job_id, None)
    worker.done(job_id, output=[])
    second = client.request("POST", f"/stream/{job_id}").json()
    assert (second["status"], second["stream"]) == ("COMPLETED", [{"output": None}])
    for _ in range(2):
        ended = client.get(f"/stream/{job_id}").json()
        assert (ended["id"], ended["status"], ended["stream"]) == (job_id, "COMPLETED", [])


def test_a_stream_that_may_wait_answers_with_an_item_or_the_end(by_hand):
    """Not with the news that the job runs."""
    _, client, worker = by_hand()
    job_id = client.submit()
    for tell in (lambda: worker.take() and worker.stream(job_id, "a"), lambda: worker.done(job_id)):
        answers: list[dict] = []
        waiting = threading.Thread(
            target=lambda answers=answers: answers.append(
                client.get(f"/stream/{job_id}", wait=60_000).json()
            )
        )
        waiting.start()
        time.sleep(0.2)  # until it waits; without it the test proves less but still holds
        tell()
        waiting.join(10)
        items = [each["output"] for each in answers[0]["stream"]]
        assert (answers[0]["status"], items) in (("IN_PROGRESS", ["a"]), ("COMPLETED", []))


def test_a_stream_is_held_for_a_second_at_most_when_no_wait_is_requested(by_hand):
    """Some clients poll without a pause and would reach the rate limit within seconds."""
    _, client, worker = by_hand()
    job_id = client.submit()
    started_at = time.monotonic()
    assert client.get(f"/stream/{job_id}").json()["stream"] == []
    assert 0.9 <= time.monotonic() - started_at < 5
    worker.take()
    later = threading.Timer(0.3, worker.stream, (job_id, "a"))
    later.start()
    started_at = time.monotonic()
    assert client.get(f"/stream/{job_id}").json()["stream"] == [{"output": "a"}]
    assert time.monotonic() - started_at < 0.9
    later.join()
    worker.done(job_id)
    started_at = time.monotonic()
    assert client.get(f"/stream/{job_id}").json()["status"] == "COMPLETED"
    assert time.monotonic() - started_at < 0.9


def test_an_item_above_one_megabyte_arrives_in_pieces(by_hand):
    emulator, client, worker = by_hand()
    job_id = client.submit()
    worker.take()
    text = "ü" * 1_500_000
    worker.stream(job_id, text)
    pieces = client.get(f"/stream/{job_id}").json()["stream"]
    assert len(pieces) > 1
    assert all(len(json.dumps(each)) <= 1_000_000 for each in pieces)
    assert "".join(each["output"] for each in pieces) == text
    assert emulator.state()["hazards"]["counts"] == {"oversize-chunk": 1}


def test_progress_is_the_output_until_the_result_comes(by_hand):
    _, client, worker = by_hand()
    job_id = client.submit()
    worker.take()
    worker.done(job_id, status="IN_PROGRESS", output={"percent": 50})
    running = client.status(job_id)
    assert (running["status"], running["output"]) == ("IN_PROGRESS", {"percent": 50})
    worker.done(job_id, output="all")
    assert client.status(job_id)["output"] == "all"


def test_health_counts_a_worker_by_what_it_does(by_hand):
    _, client, worker = by_hand(ready_counts_running=True)

    def workers():
        return {name: n for name, n in client.get("/health").json()["workers"].items() if n}

    assert workers() == {"initializing": 1}
    job_id = client.submit()
    worker.take()
    assert workers() == {"ready": 1, "running": 1}
    worker.done(job_id, output=1)
    assert workers() == {"ready": 1, "idle": 1}
    worker.request("GET", f"/ping/{worker.id}?status=unhealthy&check=disk&reason=full")
    assert workers() == {"unhealthy": 1}


def test_an_empty_input_can_be_lost_on_its_way_as_it_seems_to_be_in_production(by_hand):
    _, client, worker = by_hand(empty_input=EmptyInput.LOST)
    lost, kept = client.submit({}), client.submit({"a": 1})
    assert worker.take() == {"id": lost}
    assert worker.take() == {"id": kept, "input": {"a": 1}}


def test_a_worker_of_one_endpoint_is_a_stranger_to_another(handlers, tmp_path):
    chosen = settings_for(handlers / "many_sided.py", tmp_path, workers_min=1, workers_max=1)
    (endpoint,) = chosen.endpoints
    test = replace(endpoint, command=IDLE_COMMAND)
    both = (test, replace(test, id="other"))
    with running_emulator(replace(chosen, endpoints=both)) as emulator:
        client, other = EndpointClient(emulator), EndpointClient(emulator, "other")
        at_home, stranger = HandWorker(emulator), HandWorker(emulator, "other")
        job_id, other_id = client.submit(), other.submit()
        for worker_id in (at_home.id, stranger.id):
            refused = stranger.request("GET", f"/../test/job-take/{worker_id}")
            assert refused.status_code == 401
        assert stranger.done(job_id, output="not mine").status_code == 200
        assert client.status(job_id)["status"] == "IN_QUEUE"
        assert stranger.take()["id"] == other_id
        assert at_home.take()["id"] == job_id


# What nobody should send

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)
policies = st.fixed_dictionaries(
    {}, optional={"ttl": anything, "executionTimeout": anything, "lowPriority": anything}
)
requests_made = st.fixed_dictionaries(
    {},
    optional={
        "input": anything,
        "webhook": anything,
        "s3Config": anything,
        "policy": policies | anything,
    },
)
bodies = (requests_made | anything).map(json.dumps).map(str.encode) | st.binary()


@settings(max_examples=100, deadline=None, database=None)
@given(body=bodies)
def test_no_body_breaks_the_emulator(queueing, body):
    answer = EndpointClient(queueing).request("POST", "/run", data=body)
    assert answer.status_code in (200, 400), answer.text
    assert answer.json().keys() == ({"id", "status"} if answer.ok else {"error"})


@settings(max_examples=40, deadline=None, database=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    operation=st.sampled_from(["status", "stream", "cancel", "retry", "health", "ping", ""]),
    job_id=st.text(max_size=20).map(lambda text: quote(text, errors="replace")),
    query=st.dictionaries(st.sampled_from(["ttl", "wait"]), st.text(max_size=5)),
)
def test_no_path_breaks_the_emulator(queueing, method, operation, job_id, query):
    client = EndpointClient(queueing)
    answer = client.request(method, f"/{operation}/{job_id}", params=query)
    assert answer.status_code in (200, 400, 401, 404, 405), answer.text


@settings(max_examples=40, deadline=None, database=None)
@given(key=st.binary(max_size=20).map(lambda raw: b"Bearer " + raw.translate(None, b"\r\n\0")))
def test_no_key_breaks_the_emulator(queueing, key):
    answer = EndpointClient(queueing).request("GET", "/health", headers={"Authorization": key})
    assert answer.status_code in (400, 401)


def workers_of(state):
    return state["endpoints"]["test"]["workers"]


def job_that_runs(client, tmp_path):
    """A job that would run for ever, whose handler has begun, and the id of its worker.

    Before it begins, the SDK loses what it is told about it by job-stop.
    """
    job_id = client.submit({"do": "progress", "values": [1], "until": str(tmp_path / "never")})
    until(lambda: client.status(job_id).get("output") == 1)
    return job_id, client.status(job_id)["workerId"]
