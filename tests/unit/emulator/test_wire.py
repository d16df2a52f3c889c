"""The JSON of the platform, key by key, and everything that is no such JSON."""

import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.jobs import BEHAVIOUR, make_job, make_job_in, make_policy, make_webhook

from runpod_emulator.api import wire
from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.wire import PolicyFields, ResultKind
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, JobStatus, Policy
from runpod_emulator.settings import EndpointSettings

QUEUED = JobStatus.IN_QUEUE
RUNNING = JobStatus.IN_PROGRESS
COMPLETED = JobStatus.COMPLETED
FAILED = JobStatus.FAILED
CANCELLED = JobStatus.CANCELLED
TIMED_OUT = JobStatus.TIMED_OUT

PROGRESS = ResultKind.PROGRESS
DONE = ResultKind.COMPLETED
BROKEN = ResultKind.FAILED

ENDPOINT = EndpointSettings(id="ep", command=(), execution_timeout_s=300.0, ttl_s=7200.0)
DEPTH = 100_000
DEEP = b'{"input":' + b"[" * DEPTH + b"]" * DEPTH + b',"output":0}'
NO_JSON = (
    b"",
    b"image",
    b"{",
    b"\xff",
    b'{"output":}',
    b"{'output': 1}",
    DEEP,
    b'{"a":%s}' % (b"1" * 5000),
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
"""Any JSON value, half surrogate pairs included."""


def strict(raw):
    """Parsed as JSON alone: without NaN, which Python adds to it."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(raw, parse_constant=refuse)


# what callers post

RUN_PROBLEMS = {
    b"[]": "body",
    b"null": "body",
    b"1": "body",
    b"{}": "input: Field required",
    b'{"Input":1}': "input",
    b'{"input":NaN}': "body",
    b'{"input":-Infinity}': "body",
    b'{"input":1e999}': "body",
    b'{"input":1,"webhook":5}': "webhook",
    b'{"input":1,"s3Config":[]}': "s3Config",
    b'{"input":1,"policy":[]}': "policy",
    b'{"input":1,"policy":{"ttl":"10000"}}': r"policy\.ttl",
    b'{"input":1,"policy":{"ttl":true}}': r"policy\.ttl",
    b'{"input":1,"policy":{"ttl":1%s}}' % (b"0" * 400): r"policy\.ttl",
    b'{"input":1,"policy":{"executionTimeout":10000.0}}': r"policy\.executionTimeout",
    b'{"input":1,"policy":{"lowPriority":1}}': r"policy\.lowPriority",
    b'{"webhook":1,"policy":{"ttl":""}}': r"input: .*; webhook: .*; policy\.ttl",
} | dict.fromkeys(NO_JSON, "body")


@pytest.mark.parametrize("raw", RUN_PROBLEMS, ids=lambda raw: repr(raw[:60]))
def test_request_that_cannot_be_is_refused_by_field(raw):
    with pytest.raises(ApiError, match=f"^{RUN_PROBLEMS[raw]}") as error:
        wire.parse_run(raw)
    assert error.value.status == 400


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_any_input_is_handed_on_as_it_was_given(value):
    asked = wire.parse_run(json.dumps({"input": value, "unknown": 1}).encode())
    text = wire.to_json(asked.input)
    assert strict(text) == value
    assert strict(wire.job_for_worker(make_job(), text)) == {"id": "job-1", "input": value}


def test_request_may_say_null_for_what_it_leaves_out():
    raw = b'{"input":null,"webhook":null,"policy":null,"s3Config":null}'
    asked = wire.parse_run(raw)
    assert asked == wire.parse_run(b'{"input":null}')
    assert (asked.webhook, asked.policy, asked.s3Config) == (None, None, None)


# policy

POLICIES = {
    "endpoint's own": (None, Policy(execution_timeout_s=300.0, ttl_s=7200.0)),
    "nothing said": (PolicyFields(), Policy(execution_timeout_s=300.0, ttl_s=7200.0)),
    "least": (
        PolicyFields(executionTimeout=5000, ttl=10_000),
        Policy(execution_timeout_s=5.0, ttl_s=10.0),
    ),
    "ttl below the timeout": (
        PolicyFields(executionTimeout=60_500, ttl=10_000),
        Policy(execution_timeout_s=60.5, ttl_s=10.0),
    ),
    "beyond seven days": (
        PolicyFields(ttl=8 * 86_400_000),
        Policy(execution_timeout_s=300.0, ttl_s=8 * 86400.0),
    ),
    "low priority": (
        PolicyFields(lowPriority=True),
        Policy(execution_timeout_s=300.0, ttl_s=7200.0, is_low_priority=True),
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policy_fills_in_what_the_endpoint_says(name):
    asked, policy = POLICIES[name]
    assert wire.policy_of(asked, ENDPOINT, BEHAVIOUR) == policy


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            PolicyFields(executionTimeout=4999),
            r"^policy\.executionTimeout: expected 5000 to .* got 4999$",
        ),
        (PolicyFields(executionTimeout=0), r"^policy\.executionTimeout: .*, got 0$"),
        (PolicyFields(ttl=9999), r"^policy\.ttl: expected 10000 to 604800000 ms, got 9999$"),
        (PolicyFields(ttl=-1), r"^policy\.ttl: .*, got -1$"),
    ],
)
def test_policy_below_the_least_is_refused(asked, message):
    with pytest.raises(ApiError, match=message) as error:
        wire.policy_of(asked, ENDPOINT, BEHAVIOUR)
    assert error.value.status == 400


def test_policy_beyond_the_longest_is_refused_if_that_is_wished_for():
    behaviour = Behaviour(enforce_max_policy=True)
    longest = PolicyFields(executionTimeout=604_800_000, ttl=604_800_000)
    assert wire.policy_of(longest, ENDPOINT, behaviour).ttl_s == 604_800.0
    with pytest.raises(ApiError, match=r"^policy\.ttl: .*, got 604800001$"):
        wire.policy_of(PolicyFields(ttl=604_800_001), ENDPOINT, behaviour)
    with pytest.raises(ApiError, match=r"^policy\.executionTimeout: .*, got 604800001$"):
        wire.policy_of(PolicyFields(executionTimeout=604_800_001), ENDPOINT, behaviour)


# what workers post: body -> kind, output, error, stopPod

RESULTS = {
    b'{"output":{"a":1}}': (DONE, {"a": 1}, None, False),
    b'{"output":""}': (DONE, "", None, False),
    b'{"output":[]}': (DONE, [], None, False),
    b'{"output":0}': (DONE, 0, None, False),
    b'{"output":null}': (DONE, None, None, False),
    b'{"output":{"output":{"a":1}}}': (DONE, {"output": {"a": 1}}, None, False),
    b'{"output":{"job_results":[1]},"stopPod":true}': (DONE, {"job_results": [1]}, None, True),
    b'{"output":1,"stopPod":false}': (DONE, 1, None, False),
    b'{"output":1,"stopPod":1}': (DONE, 1, None, False),
    b'{"error":"bad","output":{"k":2}}': (BROKEN, {"k": 2}, "bad", False),
    b'{"output":NaN}': (DONE, None, None, False),
    b'{"output":[1.5,-Infinity,1e999]}': (DONE, [1.5, None, None], None, False),
    b'{"output":"\\ud800"}': (DONE, "\ud800", None, False),
    '{"output":"Ü𝄞"}'.encode(): (DONE, "Ü𝄞", None, False),
    b'{"output":1%s}' % (b"0" * 400): (DONE, 10**400, None, False),
    b'{"status":"IN_PROGRESS","output":{"step":3}}': (PROGRESS, {"step": 3}, None, False),
    b'{"status":"COMPLETED","output":1}': (DONE, 1, None, False),
}
WITHOUT_OUTPUT = {
    b"{}": (DONE, None, False),
    b'{"stopPod":true}': (DONE, None, True),
    b'{"error":"bad"}': (BROKEN, "bad", False),
    b'{"error":"bad","stopPod":true}': (BROKEN, "bad", True),
    b'{"error":""}': (DONE, None, False),
    b'{"error":{"code":5}}': (DONE, None, False),
    b'{"error":{"code":5},"output":1}': (DONE, None, False),
    b'{"error":5}': (DONE, None, False),
    b'{"status":"IN_PROGRESS"}': (PROGRESS, None, False),
    b'{"status":"IN_PROGRESS","error":"bad"}': (BROKEN, "bad", False),
}


@pytest.mark.parametrize("raw", RESULTS, ids=lambda raw: repr(raw[:60]))
def test_result_is_understood(raw):
    kind, output, error, must_replace_worker = RESULTS[raw]
    posted = wire.parse_result(raw)
    assert posted.output is not None
    assert strict(posted.output) == output
    assert (posted.kind, posted.error) == (kind, error)
    assert posted.must_replace_worker is must_replace_worker
    assert posted.has_nan is any(word in raw for word in (b"NaN", b"Infinity", b"1e999"))


@pytest.mark.parametrize("raw", WITHOUT_OUTPUT, ids=repr)
def test_result_without_output_is_understood(raw):
    posted = wire.parse_result(raw)
    assert (posted.kind, posted.error, posted.must_replace_worker) == WITHOUT_OUTPUT[raw]
    assert posted.output is None
    assert not posted.has_nan


@pytest.mark.parametrize("parse", [wire.parse_result, wire.parse_chunk])
@pytest.mark.parametrize(
    "raw", [*NO_JSON, b"[]", b"null", b'"text"', b"NaN"], ids=lambda raw: repr(raw[:40])
)
def test_post_that_is_no_object_is_refused(parse, raw):
    with pytest.raises(ApiError, match=r"^job-") as error:
        parse(raw)
    assert error.value.status == 400


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_any_output_comes_back_as_it_was_posted(value):
    posted = wire.parse_result(json.dumps({"output": value}).encode())
    job = make_job_in(COMPLETED)
    assert strict(wire.status_object(job, posted.output))["output"] == value
    webhook = wire.webhook_object(replace(job, webhook=make_webhook()), b"{}", posted.output)
    assert strict(webhook)["output"] == value


# streams


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(), max_size=400), max_bytes=st.integers(150, 600))
@example(text="𝄞" * 300, max_bytes=600)
@example(text="\ud800" * 300, max_bytes=600)
def test_long_text_is_split_and_nothing_of_it_lost(text, max_bytes):
    pieces = wire.split_chunk({"output": text}, max_bytes)
    assert "".join(strict(piece)["output"] for piece in pieces) == text
    assert all(len(piece) <= max_bytes for piece in pieces)
    if len(wire.to_json({"output": text})) <= max_bytes:
        assert len(pieces) == 1


def test_split_text_keeps_what_came_beside_it():
    pieces = wire.split_chunk({"output": "x" * 1000, "index": 7}, 600)
    assert len(pieces) > 1
    assert {strict(piece)["index"] for piece in pieces} == {7}


@pytest.mark.parametrize("chunk", [{"output": ["x" * 1000]}, {"output": {"a": "x" * 1000}}, {}])
def test_what_is_no_text_stays_in_one_piece(chunk):
    assert [strict(piece) for piece in wire.split_chunk(chunk, 200)] == [chunk]


def test_nan_in_a_chunk_becomes_null():
    chunk = wire.parse_chunk(b'{"output":[NaN,1e999,2.5]}')
    assert (chunk.body, chunk.has_nan) == ({"output": [None, None, 2.5]}, True)
    assert not wire.parse_chunk(b'{"output":"NaN"}').has_nan


# what the platform answers


def lost(job, retries):
    """Its worker was lost so often."""
    for _ in range(retries):
        job = lifecycle.lose(job, job.worker_id, 1012.0, "no ping", Behaviour(max_retries=9))
        job = lifecycle.take(job, "worker-2", 1014.0)
    return job


def cancelled(job):
    return lifecycle.cancel(job, 1003.0, BEHAVIOUR)


def given_up(job):
    return lifecycle.lose(job, job.worker_id, 1020.0, "no ping", BEHAVIOUR)


TIMES = {"delayTime": 10_000, "executionTime": 5000}
STATUS_OBJECTS: dict[str, tuple[Job, dict[str, object]]] = {
    "queued": (make_job(), {"status": "IN_QUEUE"}),
    "running": (
        make_job_in(RUNNING),
        {"status": "IN_PROGRESS", "delayTime": 10_000, "workerId": "worker-1"},
    ),
    "completed": (
        make_job_in(COMPLETED),
        {"status": "COMPLETED", "workerId": "worker-1", **TIMES},
    ),
    "failed": (
        make_job_in(FAILED),
        {"status": "FAILED", "workerId": "worker-1", "error": "broken", **TIMES},
    ),
    "timed out": (
        make_job_in(TIMED_OUT),
        {
            "status": "TIMED_OUT",
            "workerId": "worker-1",
            "error": "executionTimeout exceeded",
            **TIMES,
        },
    ),
    "cancelled while it ran": (
        make_job_in(CANCELLED),
        {"status": "CANCELLED", "workerId": "worker-1", **TIMES},
    ),
    "cancelled in the queue": (
        cancelled(make_job()),
        {"status": "CANCELLED", "delayTime": 3000, "executionTime": 0},
    ),
    "running again": (
        lost(make_job_in(RUNNING), 1),
        {"status": "IN_PROGRESS", "delayTime": 14_000, "workerId": "worker-2", "retries": 1},
    ),
    "given up": (
        given_up(lost(make_job_in(RUNNING), 1)),
        {
            "status": "FAILED",
            "delayTime": 14_000,
            "executionTime": 6000,
            "workerId": "worker-2",
            "error": "job timed out after 1 retries",
            "retries": 1,
        },
    ),
}


@pytest.mark.parametrize("name", STATUS_OBJECTS)
def test_status_has_the_keys_that_the_platform_shows(name):
    job, expected = STATUS_OBJECTS[name]
    assert strict(wire.status_object(job, None)) == {"id": "job-1", **expected}
    with_output = {"id": "job-1", **expected, "output": {"step": 3}}
    assert strict(wire.status_object(job, b'{"step": 3}')) == with_output
    assert strict(wire.acknowledgement(job)) == {"id": "job-1", "status": expected["status"]}
    stream = {"id": "job-1", **expected, "stream": [{"output": 1}, {"output": 2}]}
    assert strict(wire.stream_object(job, [b'{"output":1}', b'{"output":2}'])) == stream


@pytest.mark.parametrize("output", [b"null", b"0", b'""', b"false", b"[]", b"{}"])
def test_empty_output_is_an_output(output):
    shown = strict(wire.status_object(make_job_in(COMPLETED), output))
    assert shown["output"] == json.loads(output)


def test_stream_without_items_is_an_empty_list():
    assert strict(wire.stream_object(make_job_in(RUNNING), []))["stream"] == []


def test_webhook_gets_the_status_with_input_and_its_own_address():
    job = make_job_in(COMPLETED, webhook=make_webhook())
    posted = strict(wire.webhook_object(job, b'{"prompt":"hello"}', b"[1]"))
    assert posted == {
        **strict(wire.status_object(job, b"[1]")),
        "input": {"prompt": "hello"},
        "webhook": "http://127.0.0.1:9/hook",
    }
    assert posted.keys() >= {"delayTime", "executionTime", "id", "input", "output", "status"}


def test_worker_gets_id_input_and_the_extras_of_the_request():
    job = make_job(
        webhook=make_webhook(),
        policy=make_policy(is_low_priority=True),
        s3_config='{"bucketName": "b"}',
    )
    assert strict(wire.job_for_worker(job, b'{"a":1}')) == {
        "id": "job-1",
        "input": {"a": 1},
        "webhook": "http://127.0.0.1:9/hook",
        "s3Config": {"bucketName": "b"},
    }
    assert strict(wire.job_for_worker(make_job(), b"{}")) == {"id": "job-1", "input": {}}
    assert strict(wire.job_for_worker(make_job(), None)) == {"id": "job-1"}
