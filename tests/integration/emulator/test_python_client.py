"""The unmodified `runpod.Endpoint` against the emulator."""

import json
import threading
from dataclasses import replace

import pytest
import requests
import runpod
from support.endpoint_client import EndpointClient, until

from runpod_emulator.testing import QUICK, running_emulator, settings_for

pytestmark = pytest.mark.sdk


@pytest.fixture(scope="module")
def served(handlers, tmp_path_factory):
    """`test` does what it is asked, `items` streams, `stuck` never gets a worker."""
    chosen = settings_for(
        handlers / "many_sided.py",
        tmp_path_factory.mktemp("served"),
        workers_min=1,
        workers_max=1,
        rate_limits=False,
        env={"CONCURRENCY": "10"},
    )
    (test,) = chosen.endpoints
    generator = (*test.command[:-1], str(handlers / "generator.py"))
    items = replace(test, id="items", command=generator, env={"AGGREGATE": "1"})
    stuck = replace(test, id="stuck", workers_min=0, workers_max=0)
    with running_emulator(replace(chosen, endpoints=(test, items, stuck))) as emulator:
        yield emulator


@pytest.fixture
def emulator(served, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", served.base_url)
    monkeypatch.setattr(runpod, "api_key", served.api_key)
    yield served
    served.clear_faults()


@pytest.fixture
def endpoint(emulator):
    return runpod.Endpoint("test")


@pytest.fixture
def items(emulator):
    return runpod.Endpoint("items")


@pytest.fixture
def stuck(emulator):
    return runpod.Endpoint("stuck")


def give(value):
    return {"do": "give", "value": value}


def test_run_then_status_then_output(endpoint):
    job = endpoint.run(give({"image": "ü"}))
    assert job.output(timeout=30) == {"image": "ü"}
    assert job.status() == "COMPLETED"


def test_an_input_that_is_wrapped_already_is_not_wrapped_again(endpoint):
    assert endpoint.run({"input": give(1)}).output(timeout=30) == 1


def test_what_stands_beside_the_input_is_sent_too(emulator, endpoint):
    job = endpoint.run({"input": give(1), "policy": {"executionTimeout": 12_000}})
    assert emulator.job(job.job_id)["policy"]["execution_timeout_s"] == 12.0
    assert job.output(timeout=30) == 1


def test_an_empty_input_is_wrapped_twice(emulator, stuck):
    """The SDK asks whether `input` is truthy."""
    job = stuck.run({"input": {}})
    found = {(each["kind"], each["job_id"]) for each in emulator.state()["hazards"]["recent"]}
    assert ("double-wrapped-input", job.job_id) in found
    job.cancel()


def test_run_sync_returns_the_output(endpoint):
    assert endpoint.run_sync(give([1, 2]), timeout=30) == [1, 2]


def test_run_sync_asks_each_second_once_the_platform_has_stopped_waiting(
    emulator, endpoint, tmp_path
):
    """After a second here, since every request of this client says so."""
    endpoint.rp_client.rp_session.params = {"wait": "1000"}
    emulator.add_fault(id="asked", at="status", action="delay", value=0)

    def release():
        until(lambda: emulator.state()["faults"][0]["hits"] >= 2)
        (tmp_path / "go").touch()

    releasing = threading.Thread(target=release)
    releasing.start()
    asked = {"do": "hold", "until": str(tmp_path / "go")}
    assert endpoint.run_sync(asked, timeout=30) == "released"
    releasing.join()


def test_run_sync_of_a_cancelled_job_returns_nothing(emulator, stuck):
    client = EndpointClient(emulator, "stuck")

    def cancel():
        (job_id,) = until(lambda: queued(client))
        assert job_id.startswith("sync-")
        client.post(f"/cancel/{job_id}")

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    assert stuck.run_sync({"a": 1}, timeout=30) is None
    cancelling.join()


def test_run_sync_of_a_failing_handler_returns_nothing(endpoint):
    assert endpoint.run_sync({"do": "fail"}, timeout=30) is None


def test_a_failed_job_has_no_output_and_raises_nothing(emulator, endpoint):
    job = endpoint.run({"do": "fail", "message": "broken"})
    assert job.output(timeout=30) is None
    assert job.status() == "FAILED"
    error = EndpointClient(emulator).status(job.job_id)["error"]
    assert json.loads(error)["error_message"] == "broken"


def test_a_final_status_is_not_requested_again(emulator, endpoint):
    job = endpoint.run(give(1))
    assert job.output(timeout=30) == 1
    emulator.add_fault(at="status", action="status", value=500)
    assert job.status() == "COMPLETED"
    assert job.output() == 1


def test_output_without_a_timeout_is_what_there_is_now(endpoint, stuck, tmp_path):
    waiting = stuck.run({"a": 1})
    assert waiting.output() is None
    assert waiting.status() == "IN_QUEUE"
    waiting.cancel()
    job = endpoint.run({"do": "progress", "values": [{"done": 1}], "until": str(tmp_path / "go")})
    assert until(job.output) == {"done": 1}
    assert job.status() == "IN_PROGRESS"
    (tmp_path / "go").touch()
    assert job.output(timeout=30) == "released"


def test_output_gives_up_after_its_timeout(stuck):
    job = stuck.run({"a": 1})
    with pytest.raises(TimeoutError, match="Job timed out"):
        job.output(timeout=1)
    job.cancel()


def test_stream_yields_each_item_once_and_ends(items):
    job = items.run({"items": ["a", {"b": 1}, None]})
    assert list(job.stream()) == ["a", {"b": 1}, None]
    assert job.output(timeout=30) == ["a", {"b": 1}, None]


def test_stream_of_a_plain_handler_is_empty(endpoint):
    assert list(endpoint.run(give(1)).stream()) == []


def test_stream_of_a_failing_generator_yields_what_came_before(emulator, items):
    job = items.run({"items": ["a", "raise"]})
    assert list(job.stream()) == ["a"]
    assert job.status() == "FAILED"
    error = EndpointClient(emulator, "items").status(job.job_id)["error"]
    assert "broken" in error


def test_cancel_ends_a_queued_job(stuck):
    job = stuck.run({"a": 1})
    assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
    assert job.status() == "CANCELLED"
    assert job.output() is None


def test_cancel_ends_a_running_job(endpoint, tmp_path):
    job = endpoint.run({"do": "progress", "values": [1], "until": str(tmp_path / "never")})
    until(lambda: job.output() == 1)
    assert job.cancel()["status"] == "CANCELLED"
    assert job.status() == "CANCELLED"


def test_health_and_purge(emulator, stuck):
    assert stuck.health()["jobs"]["inQueue"] == 0
    job = stuck.run({"a": 1})
    assert stuck.health()["jobs"]["inQueue"] == 1
    assert stuck.purge_queue() == {"removed": 1, "status": "completed"}
    assert job.status() == "CANCELLED"


def test_a_wrong_key_is_a_runtime_error(emulator):
    stranger = runpod.Endpoint("test", api_key="wrong")
    for call in (stranger.health, stranger.purge_queue, lambda: stranger.run({"a": 1})):
        with pytest.raises(RuntimeError, match="401 Unauthorized"):
            call()


def test_without_a_key_no_endpoint_is_made(emulator, monkeypatch):
    monkeypatch.setattr(runpod, "api_key", None)
    with pytest.raises(RuntimeError, match="api_key"):
        runpod.Endpoint("test")


@pytest.mark.parametrize("endpoint_id", ["nowhere", "test/nothing"])
def test_an_unknown_endpoint_is_an_http_error(emulator, endpoint_id):
    with pytest.raises(requests.HTTPError, match="404"):
        runpod.Endpoint(endpoint_id).run({"a": 1})


def test_a_refused_body_is_an_http_error(endpoint):
    with pytest.raises(requests.HTTPError, match="400"):
        endpoint.run({"input": {"a": 1}, "policy": {"ttl": 1}})


def test_too_many_gets_are_repeated_in_silence(emulator, endpoint):
    emulator.add_fault(at="health", action="status", value=429, count=2)
    assert endpoint.health()["workers"]["idle"] >= 0
    (rule,) = emulator.state()["faults"]
    assert (rule["passes"], rule["hits"]) == (3, 2)


def test_too_many_posts_are_an_error_at_once(emulator, endpoint):
    emulator.add_fault(at="run", action="status", value=429)
    with pytest.raises(requests.HTTPError, match="429"):
        endpoint.run(give(1))
    (rule,) = emulator.state()["faults"]
    assert rule["hits"] == 1


def test_purging_too_often_is_an_error(handlers, tmp_path, monkeypatch):
    chosen = settings_for(handlers / "many_sided.py", tmp_path, behaviour=QUICK, workers_max=0)
    with running_emulator(chosen) as emulator:
        monkeypatch.setattr(runpod, "endpoint_url_base", emulator.base_url)
        endpoint = runpod.Endpoint("test", api_key=emulator.api_key)
        endpoint.purge_queue()
        endpoint.purge_queue()
        with pytest.raises(requests.HTTPError, match="429"):
            endpoint.purge_queue()


def test_jobs_run_at_the_same_time(endpoint):
    jobs = [endpoint.run({"do": "meet", "others": 3}) for _ in range(3)]
    assert sorted(job.output(timeout=30) for job in jobs) == [0, 1, 2]


def queued(client):
    return [
        each["id"]
        for each in client.get("/requests").json()["requests"]
        if each["status"] == "IN_QUEUE"
    ]
