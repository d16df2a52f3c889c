"""What the platform does not have, under `/emulator`: state, metrics, faults, workers and logs.

The workers here are plain processes for which the tests speak.
"""

import json
import time
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.endpoint_client import EndpointClient, HandWorker, until, worked_by_hand

from runpod_emulator.api.admin_api import AdminApi
from runpod_emulator.faults import ACTIONS, FaultAction, FaultPoint

ROUTES = [
    ("GET", "/emulator/state"),
    ("GET", "/emulator/metrics"),
    ("GET", "/emulator/jobs/{job}"),
    ("GET", "/emulator/faults"),
    ("POST", "/emulator/faults"),
    ("DELETE", "/emulator/faults"),
    ("DELETE", "/emulator/faults/{fault}"),
    ("GET", "/emulator/workers/{worker}/log"),
    ("POST", "/emulator/workers/{worker}/{action}"),
    ("POST", "/emulator/endpoints/{endpoint}/{supply}"),
]


class Admin:
    """`/emulator` with the API key."""

    def __init__(self, emulator):
        self._url = emulator.url
        self._headers = {"Authorization": emulator.api_key}

    def request(self, method, path, **options):
        url = f"{self._url}/emulator{path}"
        return requests.request(method, url, headers=self._headers, timeout=30, **options)

    def state(self, endpoint_id="test"):
        return self.request("GET", "/state").json()["endpoints"][endpoint_id]

    def worker(self, worker_id):
        """As in the state, whether it lives or not."""
        state = self.state()
        return next(each for each in state["workers"] + state["retired"] if each["id"] == worker_id)

    def add_fault(self, **rule):
        answer = self.request("POST", "/faults", json=rule)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    with worked_by_hand(tmp_path_factory.mktemp("admin")) as parts:
        yield parts


@pytest.fixture
def emulator(parts):
    yield parts[0]
    parts[0].clear_faults()


@pytest.fixture
def admin(emulator):
    return Admin(emulator)


@pytest.fixture
def client(emulator):
    return EndpointClient(emulator)


@pytest.fixture
def worker(emulator):
    """Whichever has the endpoint's only place now."""
    return HandWorker(emulator)


# State, jobs, metrics, logs


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_everything_needs_the_key(emulator, method, path):
    url = emulator.url + path.replace("{", "").replace("}", "")
    for headers in ({}, {"Authorization": "wrong"}):
        answer = requests.request(method, url, headers=headers, timeout=10)
        assert answer.status_code == 401


def test_every_route_is_among_those(emulator):
    routes = AdminApi(emulator.gateway).routes()
    assert sorted((each.method, each.path) for each in routes) == sorted(ROUTES)


def test_the_state_tells_of_endpoints_workers_and_jobs(emulator, admin, client, worker):
    job_id = client.submit()
    whole = admin.request("GET", "/state").json()
    assert whole.keys() == {
        "started_at",
        "now",
        "endpoints",
        "faults",
        "hazards",
        "behaviour",
    }
    assert whole["behaviour"]["heartbeat_timeout_s"] == 60.0
    endpoint = whole["endpoints"]["test"]
    assert endpoint["jobs"]["IN_QUEUE"] >= 1
    assert endpoint["backlog"]["waiting"] >= 1
    assert endpoint["settings"]["workers_max"] == 1
    (told,) = endpoint["workers"]
    assert told["id"] == worker.id
    assert Path(f"/proc/{told['pid']}").exists()
    newest = endpoint["recent_jobs"][0]
    assert (newest["id"], newest["status"]) == (job_id, "IN_QUEUE")
    assert [each["reason"] for each in newest["history"]] == ["submitted"]
    client.post(f"/cancel/{job_id}")
    assert admin.request("GET", f"/jobs/{job_id}").json()["history"][-1]["reason"] == "cancelled"


def test_the_state_holds_no_key(emulator, admin):
    told = admin.request("GET", "/state").text
    session = next(iter(emulator.gateway.endpoints["test"].fleet.workers.values()))
    assert emulator.api_key not in told
    assert session.token not in told


def test_a_job_is_returned_with_its_price(admin, client, worker):
    job_id = client.submit()
    take(worker, job_id)
    worker.done(job_id, output=1)
    told = admin.request("GET", f"/jobs/{job_id}").json()
    assert (told["status"], told["executions"], told["worker_id"]) == ("COMPLETED", 1, worker.id)
    assert told["cost_usd"] >= 0
    assert [each["status"] for each in told["history"]] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def test_an_unknown_job_worker_fault_or_action_is_not_found(admin, worker):
    for method, path in (
        ("GET", "/jobs/nobody"),
        ("GET", "/workers/nobody/log"),
        ("POST", "/workers/nobody/kill"),
        ("DELETE", "/faults/nothing"),
        ("POST", f"/workers/{worker.id}/tickle"),
        ("POST", "/endpoints/test/tickle"),
        ("POST", "/endpoints/nowhere/throttle"),
    ):
        answer = admin.request(method, path)
        assert answer.status_code == 404, path
        assert answer.json().keys() == {"error"}


def test_metrics_are_prometheus_text_and_agree_with_the_state(admin, client):
    job_id = client.submit()
    admin.add_fault(id="seen", at="health", action="delay", value=0)
    client.get("/health")
    page = admin.request("GET", "/metrics")
    assert page.headers["Content-Type"].startswith("text/plain")
    families = {each.name: each for each in text_string_to_metric_families(page.text)}
    state = admin.state()
    jobs = samples(families["runpod_emulator_jobs"], "status")
    assert jobs["IN_QUEUE"] == state["jobs"]["IN_QUEUE"] >= 1
    workers = samples(families["runpod_emulator_workers"], "state")
    assert sum(workers.values()) == len(state["workers"])
    ended = samples(families["runpod_emulator_jobs_ended"], "how")
    assert ended == state["tally"]
    assert samples(families["runpod_emulator_faults"], "rule") == {"seen": 1}
    assert samples(families["runpod_emulator_billed_seconds"], "endpoint")["test"] >= 1
    assert samples(families["runpod_emulator_oldest_wait_seconds"], "endpoint")["test"] > 0
    client.post(f"/cancel/{job_id}")


def test_the_log_of_a_worker_can_be_read(admin, worker):
    log = until(lambda: admin.request("GET", f"/workers/{worker.id}/log").text)
    assert log == "started\n"


# Faults


def test_faults_are_added_listed_and_removed(admin):
    fault_id = admin.add_fault(at="run", action="status", value=503, count=2)
    assert fault_id == "run-status"
    (listed,) = admin.request("GET", "/faults").json()
    assert (listed["id"], listed["value"], listed["hits"]) == ("run-status", 503, 0)
    assert admin.request("DELETE", "/faults/run-status").status_code == 204
    assert admin.request("GET", "/faults").json() == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "fault"),
        (b"[" * 100_000, "fault"),
        (b"[]", "fault"),
        (b"{}", "at"),
        (b'{"at": "run"}', "action"),
        (b'{"at": "run", "action": "kill"}', "action"),
        (b'{"at": "run", "action": "status"}', "value"),
        (b'{"at": "run", "action": "status", "value": 99}', "value"),
        (b'{"at": "run", "action": "drop", "surprise": 1}', "field"),
        (b'{"at": "run", "action": "drop", "count": 0}', "count"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_the_field(admin, body, named):
    answer = admin.request("POST", "/faults", data=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(named)


CLIENT_POINTS = {
    FaultPoint.RUN: ("POST", "/run"),
    FaultPoint.RUNSYNC: ("POST", "/runsync"),
    FaultPoint.STATUS: ("GET", "/status/x"),
    FaultPoint.STATUS_SYNC: ("GET", "/status-sync/x"),
    FaultPoint.STREAM: ("POST", "/stream/x"),
    FaultPoint.CANCEL: ("POST", "/cancel/x"),
    FaultPoint.RETRY: ("POST", "/retry/x"),
    FaultPoint.PURGE_QUEUE: ("POST", "/purge-queue"),
    FaultPoint.HEALTH: ("GET", "/health"),
    FaultPoint.REQUESTS: ("GET", "/requests"),
}
WORKER_POINTS = {
    FaultPoint.JOB_TAKE: ("GET", "/job-take/{}"),
    FaultPoint.JOB_STOP: ("GET", "/job-stop/{}"),
    FaultPoint.PING: ("GET", "/ping/{}"),
    FaultPoint.JOB_DONE: ("POST", "/job-done/{}/x"),
    FaultPoint.JOB_STREAM: ("POST", "/job-stream/{}/x"),
}


def test_every_route_can_be_made_to_fail(admin, client, worker):
    for point in CLIENT_POINTS | WORKER_POINTS:
        admin.add_fault(at=point, action="status", value=418)
    for method, path in CLIENT_POINTS.values():
        assert client.request(method, path, json={"input": 1}).status_code == 418
    for method, path in WORKER_POINTS.values():
        assert worker.request(method, path.format(worker.id), json={}).status_code == 418
    on_workers = {FaultPoint.WORKER_START, FaultPoint.JOB_TAKEN, FaultPoint.JOB_RESULT}
    assert set(FaultPoint) == {*CLIENT_POINTS, *WORKER_POINTS, *on_workers}


def test_status_answers_in_place_of_the_operation(admin, client):
    admin.add_fault(id="down", at="run", action="status", value=503, count=1)
    before = client.get("/health").json()["jobs"]["inQueue"]
    answer = client.post("/run", {"input": 1})
    assert (answer.status_code, answer.json()) == (503, {"error": "fault down"})
    assert client.get("/health").json()["jobs"]["inQueue"] == before
    assert client.post("/run", {"input": 1}).status_code == 200


def test_delay_answers_later(admin, client):
    admin.add_fault(at="health", action="delay", value=0.3)
    began = time.monotonic()
    assert client.get("/health").status_code == 200
    assert time.monotonic() - began >= 0.3


def test_slow_answers_the_same_bit_by_bit(admin, client):
    whole = client.get("/health").json()
    num_bytes = len(json.dumps(whole))
    admin.add_fault(at="health", action="slow", value=num_bytes * 3)
    began = time.monotonic()
    assert client.get("/health").json() == whole
    assert time.monotonic() - began >= 0.25  # of a third, less the pause after the last piece


def test_drop_does_nothing_and_answers_nothing(admin, client):
    admin.add_fault(at="run", action="drop")
    before = client.get("/health").json()["jobs"]["inQueue"]
    with pytest.raises(requests.ConnectionError):
        client.post("/run", {"input": 1})
    assert client.get("/health").json()["jobs"]["inQueue"] == before


def test_drop_reply_does_the_work_and_answers_nothing(admin, client):
    admin.add_fault(at="run", action="drop-reply")
    before = client.get("/health").json()["jobs"]["inQueue"]
    with pytest.raises(requests.ConnectionError):
        client.post("/run", {"input": 1})
    assert client.get("/health").json()["jobs"]["inQueue"] == before + 1


def test_a_fault_may_strike_one_job_only(admin, client):
    struck, spared = client.submit(), client.submit()
    admin.add_fault(at="status", action="status", value=500, job_id=struck)
    assert client.get(f"/status/{struck}").status_code == 500
    assert client.get(f"/status/{spared}").status_code == 200


def test_kill_ends_the_worker_that_has_taken_a_job(admin, client, worker):
    job_id = alone(client)
    admin.add_fault(at="job-taken", action="kill", count=1)
    take(worker, job_id)
    again = until(lambda: client.status(job_id).get("retries") and client.status(job_id))
    assert (again["status"], again["retries"]) == ("IN_QUEUE", 1)
    assert client.get("/health").json()["jobs"]["retried"] >= 1
    assert ending(admin, worker) == "fault: kill: ended by signal 9"
    next_worker(admin, worker)


def test_kill_before_a_result_is_recorded_loses_it(emulator, admin, client, worker):
    job_id = alone(client)
    take(worker, job_id)
    admin.add_fault(at="job-result", action="kill", count=1)
    with pytest.raises(requests.ConnectionError):
        worker.done(job_id, output="lost")
    assert client.wait_for(job_id, "IN_QUEUE")["retries"] == 1
    next_worker(admin, worker)
    successor = HandWorker(emulator)
    take(successor, job_id)
    successor.done(job_id, output="second")
    assert client.status(job_id)["output"] == "second"
    assert emulator.job(job_id)["executions"] == 2


def test_delays_before_a_kill_put_it_into_the_middle_of_a_job(admin, client, worker):
    job_id = alone(client)
    admin.add_fault(at="job-taken", action="delay", value=0.3, count=1)
    admin.add_fault(at="job-taken", action="kill", count=1)
    began = time.monotonic()
    take(worker, job_id)
    assert client.status(job_id)["status"] == "IN_PROGRESS"
    client.wait_for(job_id, "IN_QUEUE")
    assert time.monotonic() - began >= 0.3
    next_worker(admin, worker)


def test_freeze_stops_the_process_and_thaw_lets_it_go_on(admin, client, worker):
    pid = admin.worker(worker.id)["pid"]
    admin.add_fault(at="job-taken", action="freeze", count=1)
    take(worker, alone(client))
    until(lambda: process_state(pid) == "T")
    assert admin.request("POST", f"/workers/{worker.id}/thaw").status_code == 200
    until(lambda: process_state(pid) == "S")
    assert admin.request("POST", f"/workers/{worker.id}/freeze").status_code == 200
    until(lambda: process_state(pid) == "T")
    admin.request("POST", f"/workers/{worker.id}/kill")
    next_worker(admin, worker)


def test_spot_drains_the_worker(admin, client, worker):
    admin.add_fault(at="job-taken", action="spot", value=5, count=1)
    take(worker, alone(client))
    assert ending(admin, worker) == "fault: spot interruption: ended by signal 15"
    next_worker(admin, worker)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("kill", "fault: kill: ended by signal 9"),
        ("drain", "drained by hand: ended by signal 15"),
        ("spot", "fault: spot interruption: ended by signal 15"),
        ("spot?notice_s=1", "fault: spot interruption: ended by signal 15"),
    ],
)
def test_a_worker_is_ended_by_hand(admin, worker, action, reason):
    answer = admin.request("POST", f"/workers/{worker.id}/{action}")
    assert answer.json()["id"] == worker.id
    assert ending(admin, worker) == reason
    next_worker(admin, worker)


def test_a_notice_that_is_no_number_is_refused(admin, worker):
    answer = admin.request("POST", f"/workers/{worker.id}/spot?notice_s=soon")
    assert answer.status_code == 400
    assert "notice_s" in answer.json()["error"]


def test_throttle_leaves_no_gpu_for_the_next_worker(admin, client, worker):
    admin.add_fault(at="worker-start", action="throttle", count=1)
    admin.request("POST", f"/workers/{worker.id}/kill")
    first = next_worker(admin, worker)
    assert admin.state()["is_short_of_gpus"]
    admin.request("POST", f"/workers/{first['id']}/kill")
    until(lambda: [each["state"] for each in admin.state()["workers"]] == ["THROTTLED"])
    assert client.get("/health").json()["workers"]["throttled"] == 1
    assert admin.request("DELETE", "/faults").status_code == 204
    until(lambda: admin.state()["workers"][0]["pid"])


def test_gpus_can_be_made_short_by_hand_too(admin, worker):
    answer = admin.request("POST", "/endpoints/test/throttle")
    assert answer.json() == {"is_short_of_gpus": True}
    admin.request("POST", f"/workers/{worker.id}/kill")
    until(lambda: [each["state"] for each in admin.state()["workers"]] == ["THROTTLED"])
    answer = admin.request("POST", "/endpoints/test/unthrottle")
    assert answer.json() == {"is_short_of_gpus": False}
    until(lambda: admin.state()["workers"][0]["pid"])


def test_every_action_is_observed_here():
    tested = {"delay", "drop", "drop-reply", "status", "slow", "kill", "freeze", "spot", "throttle"}
    assert tested == set(FaultAction) == set().union(*ACTIONS.values())


def alone(client):
    """A job that is next in the queue, since there is no other."""
    client.post("/purge-queue")
    return client.submit()


def take(worker, job_id):
    """Hand this job, which is next, to the worker."""
    assert until(worker.take)["id"] == job_id


def ending(admin, worker):
    """Why it has ended, once it has."""
    until(lambda: admin.worker(worker.id)["state"] == "STOPPED")
    return admin.worker(worker.id)["reason"]


def next_worker(admin, worker):
    """The one that has taken the place of this one, running."""

    def found():
        others = [each for each in admin.state()["workers"] if each["id"] != worker.id]
        return next((each for each in others if each["pid"]), None)

    return until(found)


def process_state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def samples(family, label):
    return {each.labels[label]: each.value for each in family.samples}
