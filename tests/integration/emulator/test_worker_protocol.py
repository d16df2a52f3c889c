"""The protocol between platform and worker: spoken by hand first, then by the real SDK.

By hand, a process that says nothing has the worker's place, and the test uses its id and key.
"""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import runpod
from support.platform import call, submit, wait_for

from runpod_emulator.behaviour import LateProgress, Unlisted
from runpod_emulator.emulator import TICK_S
from runpod_emulator.jobs.store import StoreUnusable
from runpod_emulator.testing import QUICK, RunningEmulator, running_emulator, settings_for

pytestmark = pytest.mark.sdk

DEADLINE_S = 30
POLL_S = 0.02
BY_HAND = replace(QUICK, heartbeat_timeout_s=600.0, refusal_delay_s=0.3)
"""A worker without pings is not lost."""
IMPATIENT = replace(
    BY_HAND, poll_hold_s=0.4, late_progress=LateProgress.REOPEN, late_result_status=404
)


class WorkerByHand:
    """What the SDK does with HTTP."""

    def __init__(self, platform, worker_id):
        fleet = platform.gateway.endpoints["test"].fleet
        self.id = worker_id
        self.token = fleet.find(worker_id).token
        self.root = f"{platform.base_url}/test"
        self.http = requests.Session()
        self.http.trust_env = False

    def get(self, route, key=None, **query):
        headers = {"Authorization": self.token if key is None else key}
        url = f"{self.root}/{route}/{self.id}?gpu=NVIDIA+L4"
        return self.http.get(url, params=query, headers=headers, timeout=DEADLINE_S)

    def post(self, route, job_id, body, key=None):
        headers = {
            "Authorization": self.token if key is None else key,
            "Content-Type": "application/x-www-form-urlencoded",
        }
        url = f"{self.root}/{route}/{self.id}/{job_id}?gpu=NVIDIA+L4&isStream=false"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(url, data=data, headers=headers, timeout=DEADLINE_S)

    @contextmanager
    def open_poll(self, route):
        """A poll whose connection is closed without having been answered."""
        address = urlsplit(self.root)
        request = (
            f"GET {address.path}/{route}/{self.id}?gpu=x HTTP/1.1\r\n"
            f"Host: {address.netloc}\r\nAuthorization: {self.token}\r\n\r\n"
        )
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(request.encode())
            yield

    def take(self):
        """One job."""
        answer = self.get("job-take", job_in_progress=0)
        assert answer.status_code == 200
        return answer.json()

    def take_batch(self, batch_size):
        return self.get("job-take-batch", batch_size=batch_size, job_in_progress=0)

    def ping(self, *job_ids):
        return self.get("ping", job_id=",".join(job_ids) or None)

    def done(self, job_id, body):
        return self.post("job-done", job_id, body)


def workers_of(state):
    return state["endpoints"]["test"]["workers"]


def worker_now(platform):
    """The worker that could take a job."""

    def able(state):
        return [w for w in workers_of(state) if w["state"] in ("INITIALIZING", "IDLE", "RUNNING")]

    return able(platform.wait_until(able))[0]


@contextmanager
def spoken_by_hand(handlers, directory, behaviour, **endpoint):
    """An endpoint whose one worker leaves the protocol to the test."""
    settings = settings_for(
        handlers / "silent.py",
        directory,
        behaviour=behaviour,
        workers_min=1,
        workers_max=1,
        rate_limits=False,
        **endpoint,
    )
    with running_emulator(settings) as running:
        yield running


@pytest.fixture(scope="module")
def patient(handlers, tmp_path_factory):
    """Holds polls for 20 s, as the platform is believed to do."""
    with spoken_by_hand(handlers, tmp_path_factory.mktemp("patient"), BY_HAND) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(handlers, tmp_path_factory):
    """Holds polls for a moment, and has the platform's known bugs."""
    with spoken_by_hand(handlers, tmp_path_factory.mktemp("impatient"), IMPATIENT) as running:
        yield running


@contextmanager
def by_hand_on(platform):
    worker = WorkerByHand(platform, worker_now(platform)["id"])
    try:
        yield worker
    finally:
        for held in list(workers_of(platform.state())):
            for job_id in held["jobs"]:
                worker.done(job_id, {"output": "tidied up"})
        call(platform, "/purge-queue", method="POST")
        worker.http.close()


@contextmanager
def platform_by_hand(handlers, directory, behaviour, **endpoint):
    """One of its own, with its worker."""
    running = spoken_by_hand(handlers, directory, behaviour, **endpoint)
    with running as platform, by_hand_on(platform) as worker:
        yield platform, worker


@pytest.fixture
def by_hand(patient):
    with by_hand_on(patient) as worker:
        yield worker


@pytest.fixture
def hasty(impatient):
    with by_hand_on(impatient) as worker:
        yield worker


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


@contextmanager
def passes_of(platform, at):
    """A function that says how many requests have come to a route, by a fault that never hits."""
    platform.add_fault(id="count", at=at, action="drop", probability=0)
    try:
        yield lambda: platform.state()["faults"][0]["passes"]
    finally:
        platform.clear_faults()


def until(holds):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(POLL_S)
    return found


def hazards_of(platform, job_id):
    recent = platform.state()["hazards"]["recent"]
    return {str(each["kind"]) for each in recent if each["job_id"] == job_id}


def num_hazards(platform, kind):
    return platform.state()["hazards"]["counts"][kind]


def status_of(platform, job_id):
    return call(platform, f"/status/{job_id}")


async def no_space_left(*arguments, **keywords):
    raise StoreUnusable("database jobs.db: database or disk is full")


class TestTakingByHand:
    def test_poll_without_work_is_answered_204_when_its_hold_is_over(self, hasty):
        started_at = time.monotonic()
        answer = hasty.get("job-take", job_in_progress=0)
        assert (answer.status_code, answer.content) == (204, b"")
        assert time.monotonic() - started_at >= IMPATIENT.poll_hold_s

    def test_held_poll_is_answered_as_soon_as_a_job_comes(self, patient, by_hand, pool):
        with passes_of(patient, "job-take") as num_polls:
            poll = pool.submit(by_hand.take)
            until(lambda: num_polls() == 1)
            started_at = time.monotonic()
            job_id = submit(patient, {"input": {"n": 1}})
            assert poll.result()["id"] == job_id
        assert time.monotonic() - started_at < BY_HAND.poll_hold_s / 2

    def test_single_take_is_one_object_with_what_its_caller_gave(self, patient, by_hand):
        s3_config = {"accessId": "a", "accessSecret": "s", "bucketName": "b", "endpointUrl": "e"}
        job_id = submit(
            patient,
            {
                "input": {"n": 1},
                "webhook": "http://127.0.0.1:9/",
                "s3Config": s3_config,
                "policy": {"ttl": 60_000},
            },
        )
        assert by_hand.take() == {
            "id": job_id,
            "input": {"n": 1},
            "webhook": "http://127.0.0.1:9/",
            "s3Config": s3_config,
        }
        call(patient, f"/cancel/{job_id}", method="POST")

    def test_batch_take_is_a_list_of_the_oldest_up_to_its_size(self, patient, by_hand):
        ids = [submit(patient, {"input": {"n": n}}) for n in range(3)]
        assert [job["id"] for job in by_hand.take_batch(2).json()] == ids[:2]
        assert [job["id"] for job in by_hand.take_batch(2).json()] == ids[2:]

    @pytest.mark.parametrize("batch_size", ["1.5", "0", "-3", "many", "inf", ""])
    def test_odd_batch_size_takes_one_job(self, patient, by_hand, batch_size):
        ids = [submit(patient, {"input": {"n": n}}) for n in range(2)]
        assert [job["id"] for job in by_hand.take_batch(batch_size).json()] == ids[:1]

    @pytest.mark.parametrize("given", [0, "", [], False, "\ud83d", {"deep": [[[{}]]]}])
    def test_input_of_any_kind_is_handed_out(self, patient, by_hand, given):
        submit(patient, {"input": given})
        assert by_hand.take()["input"] == given

    def test_job_is_kept_when_its_poll_is_gone_before_it_comes(self, patient, by_hand):
        with passes_of(patient, "job-take") as num_polls:
            with by_hand.open_poll("job-take"):
                until(lambda: num_polls() == 1)
            job_id = submit(patient, {"input": {"n": 1}})
            assert by_hand.take()["id"] == job_id
        assert patient.job(job_id)["retries"] == 0
        by_hand.done(job_id, {"output": 1})
        assert patient.job(job_id)["worker_id"] == by_hand.id

    def test_two_polls_never_get_the_same_job(self, patient, by_hand, pool):
        with passes_of(patient, "job-take") as num_polls:
            polls = [pool.submit(by_hand.take) for _ in range(2)]
            until(lambda: num_polls() == 2)
            ids = {submit(patient, {"input": {"n": n}}) for n in range(2)}
            assert {poll.result()["id"] for poll in polls} == ids
        assert all(patient.job(job_id)["executions"] == 1 for job_id in ids)


class TestKeysByHand:
    def test_wrong_key_is_refused_late_since_the_sdk_knows_no_pause(self, by_hand):
        started_at = time.monotonic()
        answer = by_hand.get("job-take", key="wrong")
        assert answer.status_code == 401
        assert time.monotonic() - started_at >= BY_HAND.refusal_delay_s

    def test_failure_of_the_database_is_answered_late_too(self, handlers, tmp_path, monkeypatch):
        with platform_by_hand(handlers, tmp_path, BY_HAND) as (platform, worker):
            submit(platform, {"input": {"n": 1}})
            with monkeypatch.context() as full:
                full.setattr(type(platform.gateway.store), "replace", no_space_left)
                started_at = time.monotonic()
                assert worker.get("job-take", job_in_progress=0).status_code == 503
                assert time.monotonic() - started_at >= BY_HAND.refusal_delay_s

    @pytest.mark.parametrize("route", ["job-take", "job-take-batch", "job-stop", "ping"])
    def test_no_key_opens_nothing(self, by_hand, route):
        assert by_hand.get(route, key="").status_code == 401

    @pytest.mark.parametrize("route", ["job-done", "job-stream"])
    def test_result_without_the_key_is_refused(self, patient, by_hand, route):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        assert by_hand.post(route, job_id, {"output": 1}, key="").status_code == 401
        assert status_of(patient, job_id)["status"] == "IN_PROGRESS"

    def test_key_of_the_client_api_is_none_of_a_worker(self, patient, by_hand):
        assert by_hand.get("ping", key=patient.api_key).status_code == 401
        headers = {"Authorization": f"Bearer {by_hand.token}"}
        assert by_hand.http.get(f"{by_hand.root}/health", headers=headers).status_code == 401

    def test_worker_of_another_endpoint_or_of_none_is_refused(self, impatient, by_hand):
        stranger = WorkerByHand(impatient, worker_now(impatient)["id"])
        with stranger.http:
            stranger.root = by_hand.root
            assert stranger.get("ping").status_code == 401

    def test_key_may_come_with_or_without_bearer(self, by_hand):
        assert by_hand.get("ping").status_code == 200
        assert by_hand.get("ping", key=f"Bearer {by_hand.token}").status_code == 200

    def test_unknown_endpoint_path_and_method_are_refused(self, patient, by_hand):
        by_hand.root = f"{patient.base_url}/nowhere"
        assert by_hand.get("job-take").status_code == 404
        by_hand.root = f"{patient.base_url}/test"
        assert by_hand.get("job-taken").status_code == 404
        assert by_hand.post("ping", "x", {}).status_code == 404
        url = f"{by_hand.root}/job-done/{by_hand.id}/x"
        assert by_hand.http.get(url).status_code == 405


class TestStoppingByHand:
    def test_stop_poll_is_answered_204_when_its_hold_is_over(self, hasty):
        assert hasty.get("job-stop").status_code == 204

    def test_cancelled_job_is_named_once(self, impatient, hasty):
        job_id = submit(impatient, {"input": {"n": 1}})
        hasty.take()
        call(impatient, f"/cancel/{job_id}", method="POST")
        answers = (hasty.get("job-stop") for _ in range(100))
        named = next(answer for answer in answers if answer.status_code == 200)
        assert named.json() == {"jobsToStop": [job_id]}
        assert hasty.get("job-stop").status_code == 204

    def test_held_stop_poll_is_answered_as_soon_as_a_job_must_end(self, patient, by_hand, pool):
        ids = [submit(patient, {"input": {"n": n}}) for n in range(2)]
        by_hand.take_batch(2)
        with passes_of(patient, "job-stop") as num_polls:
            poll = pool.submit(by_hand.get, "job-stop")
            until(lambda: num_polls() == 1)
            call(patient, f"/cancel/{ids[1]}", method="POST")
            assert poll.result().json() == {"jobsToStop": [ids[1]]}

    def test_job_that_ended_meanwhile_is_not_named(self, impatient, hasty):
        job_id = submit(impatient, {"input": {"n": 1}})
        hasty.take()
        call(impatient, f"/cancel/{job_id}", method="POST")
        hasty.done(job_id, {"output": 1})
        assert hasty.get("job-stop").status_code == 204

    def test_cancelled_job_that_waits_is_no_workers_business(self, impatient, hasty):
        job_id = submit(impatient, {"input": {"n": 1}})
        assert call(impatient, f"/cancel/{job_id}", method="POST")["status"] == "CANCELLED"
        assert hasty.get("job-stop").status_code == 204
        assert hasty.get("job-take").status_code == 204

    def test_job_to_stop_is_kept_when_its_poll_is_gone(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        with passes_of(patient, "job-stop") as num_polls, by_hand.open_poll("job-stop"):
            until(lambda: num_polls() == 1)
        call(patient, f"/cancel/{job_id}", method="POST")
        assert by_hand.get("job-stop").json() == {"jobsToStop": [job_id]}


class TestResultsByHand:
    def test_first_result_counts_and_the_second_is_acknowledged(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        assert by_hand.done(job_id, {"output": "first"}).status_code == 200
        assert by_hand.done(job_id, {"error": "second"}).status_code == 200
        status = status_of(patient, job_id)
        assert (status["status"], status["output"]) == ("COMPLETED", "first")
        assert hazards_of(patient, job_id) == {"late-result"}

    @pytest.mark.parametrize("late", [{"output": 1}, {"error": "broken"}])
    def test_result_of_a_cancelled_job_is_acknowledged_and_dropped(self, patient, by_hand, late):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        call(patient, f"/cancel/{job_id}", method="POST")
        assert by_hand.done(job_id, late).status_code == 200
        status = status_of(patient, job_id)
        assert status["status"] == "CANCELLED"
        assert not status.keys() & {"output", "error"}

    def test_result_of_a_job_that_this_worker_does_not_hold_is_dropped(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        assert by_hand.done(job_id, {"output": 1}).status_code == 200
        assert by_hand.done("unknown", {"output": 1}).status_code == 200
        assert status_of(patient, job_id)["status"] == "IN_QUEUE"

    def test_late_result_is_answered_as_the_switch_says(self, impatient, hasty):
        job_id = submit(impatient, {"input": {"n": 1}})
        hasty.take()
        assert hasty.done(job_id, {"output": 1}).status_code == 200
        assert hasty.done(job_id, {"output": 1}).status_code == 404

    def test_late_progress_is_dropped(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        by_hand.done(job_id, {"status": "IN_PROGRESS", "output": "half"})
        assert status_of(patient, job_id)["output"] == "half"
        by_hand.done(job_id, {"output": "all"})
        assert by_hand.done(job_id, {"status": "IN_PROGRESS", "output": "half"}).ok
        status = status_of(patient, job_id)
        assert (status["status"], status["output"]) == ("COMPLETED", "all")
        assert hazards_of(patient, job_id) == {"late-progress"}

    def test_late_progress_reopens_the_job_where_the_platforms_bug_is_wished_for(
        self, impatient, hasty
    ):
        job_id = submit(impatient, {"input": {"n": 1}})
        hasty.take()
        hasty.done(job_id, {"output": "all"})
        hasty.done(job_id, {"status": "IN_PROGRESS", "output": "half"})
        status = status_of(impatient, job_id)
        assert (status["status"], status["output"]) == ("IN_PROGRESS", "half")
        call(impatient, f"/cancel/{job_id}", method="POST")

    @pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"output=1", b"\xff"])
    def test_result_that_is_no_json_object_is_refused(self, patient, by_hand, body):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        assert by_hand.done(job_id, body).status_code == 400
        assert status_of(patient, job_id)["status"] == "IN_PROGRESS"

    def test_streamed_item_of_a_job_that_has_ended_is_dropped(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        assert by_hand.post("job-stream", job_id, {"output": 1}).ok
        by_hand.done(job_id, {"output": []})
        assert by_hand.post("job-stream", job_id, {"output": 2}).ok
        assert call(patient, f"/stream/{job_id}")["stream"] == [{"output": 1}]

    def test_nan_in_a_streamed_item_becomes_null_and_is_reported(self, patient, by_hand):
        job_id = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        assert by_hand.post("job-stream", job_id, b'{"output": NaN}').ok
        assert call(patient, f"/stream/{job_id}")["stream"] == [{"output": None}]
        assert hazards_of(patient, job_id) == {"not-a-number"}
        by_hand.done(job_id, {"output": []})


class TestPingsByHand:
    def test_job_is_lost_when_pings_no_longer_list_it(self, handlers, tmp_path):
        behaviour = replace(BY_HAND, heartbeat_timeout_s=1.0, max_retries=0)
        with platform_by_hand(handlers, tmp_path, behaviour) as (platform, worker):
            ids = [submit(platform, {"input": {"n": n}}) for n in range(2)]
            worker.take_batch(2)
            until(lambda: worker.ping(ids[0]) and status_of(platform, ids[1])["status"] == "FAILED")
            assert status_of(platform, ids[1])["error"] == "job timed out after 0 retries"
            assert hazards_of(platform, ids[1]) == {"lost-result"}
            assert status_of(platform, ids[0])["status"] == "IN_PROGRESS"
            assert worker_now(platform)["id"] == worker.id

    def test_unlisted_job_hangs_where_the_platforms_behaviour_is_wished_for(
        self, handlers, tmp_path
    ):
        behaviour = replace(BY_HAND, heartbeat_timeout_s=0.5, unlisted_job=Unlisted.HANG)
        with platform_by_hand(handlers, tmp_path, behaviour) as (platform, worker):
            job_id = submit(platform, {"input": {"n": 1}})
            worker.take()
            over = time.monotonic() + 3 * behaviour.heartbeat_timeout_s
            until(lambda: worker.ping() and time.monotonic() > over)
            assert status_of(platform, job_id)["status"] == "IN_PROGRESS"

    def test_worker_that_asks_for_work_as_if_it_held_none_has_lost_its_result(
        self, patient, by_hand
    ):
        held = submit(patient, {"input": {"n": 1}})
        by_hand.take()
        submit(patient, {"input": {"n": 2}})
        assert by_hand.get("job-take", job_in_progress=1).ok
        assert hazards_of(patient, held) == set()
        submit(patient, {"input": {"n": 3}})
        by_hand.take()
        assert hazards_of(patient, held) == {"lost-result"}

    def test_ping_that_is_older_than_job_stop_does_not_say_that_the_job_has_stopped(
        self, handlers, tmp_path
    ):
        behaviour = replace(BY_HAND, stop_grace_s=0.3)
        with platform_by_hand(handlers, tmp_path, behaviour) as (platform, worker):
            job_id = submit(platform, {"input": {"n": 1}})
            worker.take()
            worker.ping()
            call(platform, f"/cancel/{job_id}", method="POST")
            time.sleep(3 * TICK_S)  # enough to believe it
            retired = until(
                lambda: worker.ping(job_id) and platform.state()["endpoints"]["test"]["retired"]
            )
            assert retired[0]["reason"].startswith(f"job {job_id} did not react to job-stop")

    def test_worker_without_pings_is_killed_and_its_job_goes_to_the_next(self, handlers, tmp_path):
        behaviour = replace(BY_HAND, heartbeat_timeout_s=1.0)
        with platform_by_hand(handlers, tmp_path, behaviour) as (platform, worker):
            job_id = submit(platform, {"input": {"n": 1}})
            worker.take()
            until(lambda: status_of(platform, job_id)["status"] == "IN_QUEUE")
            details = platform.job(job_id)
            assert details["retries"] == 1
            assert details["history"][-1]["reason"].startswith("worker lost: no ping for 1 s")

    def test_worker_that_was_long_in_starting_is_given_time_for_its_first_ping(
        self, handlers, tmp_path
    ):
        behaviour = replace(BY_HAND, heartbeat_timeout_s=1.0, poll_hold_s=0.5)
        with platform_by_hand(handlers, tmp_path, behaviour) as (platform, worker):
            pid = worker_now(platform)["pid"]
            time.sleep(1.2 * behaviour.heartbeat_timeout_s)
            assert worker.get("job-take").status_code == 204
            worker.ping()
            assert worker_now(platform)["pid"] == pid

    def test_pings_of_a_worker_that_has_ended_prove_nothing(self, patient):
        with by_hand_on(patient) as worker:
            job_id = submit(patient, {"input": {"n": 1}})
            worker.take()
            os.kill(worker_now(patient)["pid"], signal.SIGKILL)
            until(lambda: status_of(patient, job_id)["status"] == "IN_QUEUE")
            assert worker.ping(job_id).status_code == 200
            assert worker.get("job-take").status_code == 204
            with by_hand_on(patient) as successor:
                assert successor.take()["id"] == job_id
                assert worker.done(job_id, {"output": 1}).status_code == 200
                assert status_of(patient, job_id)["status"] == "IN_PROGRESS"
                assert successor.id != worker.id

    def test_unhealthy_ping_says_which_check_failed_and_takes_the_worker_out(self, patient):
        with by_hand_on(patient) as worker:
            pid = worker_now(patient)["pid"]
            worker.get("ping", status="unhealthy", check="weights", reason="OSError: none there")
            [shown] = workers_of(patient.state())
            assert shown["state"] == "UNHEALTHY"
            assert shown["reason"] == "fitness check weights: OSError: none there"
            job_id = submit(patient, {"input": {"n": 1}})
            assert worker.get("job-take").status_code == 204
            assert status_of(patient, job_id)["status"] == "IN_QUEUE"
            os.kill(pid, signal.SIGKILL)  # the SDK ends itself


def until_it_ignores_sigterm(platform, worker):
    """Wait for its first line: before that, SIGTERM would end it."""
    session = platform.gateway.endpoints["test"].fleet.find(worker.id)
    until(session.process.log_tail)


class TestDrainingByHand:
    @pytest.fixture
    def deaf(self, handlers, tmp_path):
        """Its worker does not react to SIGTERM."""
        behaviour = replace(BY_HAND, terminate_grace_s=1.0)
        env = {"IGNORES_SIGTERM": "1"}
        with platform_by_hand(handlers, tmp_path, behaviour, env=env) as (platform, worker):
            until_it_ignores_sigterm(platform, worker)
            yield platform, worker

    def test_worker_that_asks_to_be_replaced_gets_no_further_job(self, deaf, pool):
        platform, worker = deaf
        job_id = submit(platform, {"input": {"n": 1}})
        worker.take()
        with passes_of(platform, "job-take") as num_polls:
            poll = pool.submit(worker.get, "job-take", job_in_progress=1)
            until(lambda: num_polls() == 1)
            worker.done(job_id, {"output": 1, "stopPod": True})
            next_id = submit(platform, {"input": {"n": 2}})
            assert poll.result().status_code == 204
        assert worker.get("job-take").status_code == 204
        assert worker.get("job-stop").status_code == 204
        assert status_of(platform, next_id)["status"] == "IN_QUEUE"
        with by_hand_on(platform) as successor:
            assert successor.id != worker.id
            assert successor.take()["id"] == next_id
        state = platform.wait_until(lambda state: state["endpoints"]["test"]["retired"])
        [ended] = state["endpoints"]["test"]["retired"]
        assert ended["id"] == worker.id
        assert ended["reason"] == "did not end in time after SIGTERM: ended by signal 9"

    def test_draining_worker_may_still_finish_what_it_holds(self, deaf):
        platform, worker = deaf
        ids = [submit(platform, {"input": {"n": n}}) for n in range(2)]
        worker.take_batch(2)
        worker.done(ids[0], {"output": 1, "stopPod": True})
        worker.done(ids[1], {"output": 2})
        assert status_of(platform, ids[1])["output"] == 2
        assert platform.job(ids[1])["executions"] == 1

    def test_emulator_that_ends_waits_for_results_and_keeps_what_has_none(
        self, handlers, tmp_path, pool
    ):
        settings = settings_for(
            handlers / "silent.py",
            tmp_path,
            behaviour=replace(BY_HAND, terminate_grace_s=2.0),
            workers_min=1,
            env={"IGNORES_SIGTERM": "1"},
        )
        with running_emulator(settings) as platform:
            worker = WorkerByHand(platform, worker_now(platform)["id"])
            with worker.http:
                until_it_ignores_sigterm(platform, worker)
                ids = [submit(platform, {"input": {"n": n}}) for n in range(3)]
                worker.take_batch(2)
                ending = pool.submit(platform.stop)
                until(lambda: workers_of(platform.state())[0]["state"] == "DRAINING")
                worker.done(ids[0], {"output": "just in time"})
            ending.result()
        with running_emulator(replace(settings, endpoints=(no_worker(settings),))) as platform:
            statuses = [status_of(platform, job_id) for job_id in ids]
            assert [status["status"] for status in statuses] == ["COMPLETED", *["IN_QUEUE"] * 2]
            assert statuses[0]["output"] == "just in time"
            assert [platform.job(job_id)["retries"] for job_id in ids] == [0, 0, 0]


def no_worker(settings):
    return replace(settings.endpoints[0], workers_min=0, workers_max=0)


FORMS = {
    "object": ({"a": 1}, {"status": "COMPLETED", "output": {"a": 1}}, set()),
    "text": ("red", {"status": "COMPLETED", "output": "red"}, set()),
    "text beyond ASCII": ("\u00e9\U0001f600", {"status": "COMPLETED", "output": "é😀"}, set()),
    "list": ([1, [2]], {"status": "COMPLETED", "output": [1, [2]]}, set()),
    "number": (1.5, {"status": "COMPLETED", "output": 1.5}, set()),
    "true": (True, {"status": "COMPLETED", "output": True}, set()),
    "false": (False, {"status": "COMPLETED", "output": False}, set()),
    "zero": (0, {"status": "COMPLETED", "output": 0}, set()),
    "empty text": ("", {"status": "COMPLETED", "output": ""}, set()),
    "empty list": ([], {"status": "COMPLETED", "output": []}, set()),
    "None": (None, {"status": "COMPLETED", "output": None}, set()),
    "empty object": ({}, {"status": "COMPLETED"}, {"no-output"}),
    "error": ({"error": "bad thing"}, {"status": "FAILED", "error": "bad thing"}, set()),
    "empty error": ({"error": ""}, {"status": "COMPLETED"}, {"no-output"}),
    "error and more": (
        {"error": "bad", "output": {"x": 1}, "k": 2},
        {"status": "FAILED", "error": "bad", "output": {"output": {"x": 1}, "k": 2}},
        set(),
    ),
    "error that is no text": (
        {"error": {"code": 5}},
        {"status": "COMPLETED"},
        {"error-not-a-string"},
    ),
    "output in output": (
        {"output": {"a": 1}},
        {"status": "COMPLETED", "output": {"output": {"a": 1}}},
        {"double-wrapped-output"},
    ),
    "refresh_worker that is false": (
        {"refresh_worker": False, "a": 1},
        {"status": "COMPLETED", "output": {"a": 1}},
        set(),
    ),
}
"""What a handler returns: what its caller then sees, and the hazards that are reported."""

POSTS = {
    "500 once": ("status", 500, 1, 1),
    "503 twice": ("status", 503, 2, 1),
    "500 three times": ("status", 500, 3, 2),
    "400": ("status", 400, 1, 2),
    "429": ("status", 429, 1, 2),
    "dropped": ("drop", None, 1, 2),
    "dropped after it was read": ("drop-reply", None, 1, 1),
}
"""How the post of a result is spoilt, how often, and how many executions the job needs."""


LOSSES = {
    "a set": {"do": "give_strange", "name": "set"},
    "bytes": {"do": "give_strange", "name": "bytes"},
    "a generator": {"do": "give_strange", "name": "generator"},
    "raised CancelledError": {"do": "fail", "name": "CancelledError"},
}
"""Ends of a handler of which the SDK posts nothing."""


class Kinds:
    """Emulators with one SDK worker each, started together since a start takes seconds."""

    def __init__(self, handlers, directory, stack, emulator):
        self._handlers = handlers
        self._directory = directory
        self._stack = stack
        self.all = []
        self.many = self._start("many_sided", CONCURRENCY="32")
        self.four = self._start("many_sided", CONCURRENCY="4")
        self.blocking = self._start("blocking", CONCURRENCY="3")
        self.plain = self._start("generator")
        self.aggregate = self._start("generator", AGGREGATE="1")
        # so that the worker's first poll takes them all
        self.blocked = [submit(self.blocking, {"input": {"seconds": 0.3}}) for _ in range(3)]
        # so that their end does not have to be waited for
        self.lost = {name: ask(emulator, **asked) for name, asked in LOSSES.items()}

    def _start(self, name, **env):
        settings = settings_for(
            self._handlers / f"{name}.py",
            self._directory / str(len(self.all)),
            workers_min=1,
            workers_max=1,
            rate_limits=False,
            env=env,
        )
        self.all.append(self._stack.enter_context(running_emulator(settings)))
        return self.all[-1]


@pytest.fixture(scope="module")
def kinds(handlers, tmp_path_factory, emulator):
    with ExitStack() as stack:
        kinds = Kinds(handlers, tmp_path_factory.mktemp("kinds"), stack, emulator)
        yield kinds
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(RunningEmulator.stop, kinds.all))


@pytest.fixture(scope="module")
def of_forms(kinds):
    """All at once: what became of a job that returns each form."""
    ids = {name: ask(kinds.many, "give", value=value) for name, (value, *_) in FORMS.items()}
    return {name: wait_for(kinds.many, job_id) for name, job_id in ids.items()}


@pytest.fixture(scope="module")
def reports(emulator, kinds):
    """What two workers say of themselves."""
    ids = [(platform, ask(platform, "report")) for platform in (emulator, kinds.many)]
    return [wait_for(*each) for each in ids]


def ask(platform, do, **more):
    return submit(platform, {"input": {"do": do, **more}})


class TestResults:
    @pytest.mark.parametrize("name", FORMS)
    def test_what_the_handler_returns_becomes(self, kinds, of_forms, name):
        _, seen, hazards = FORMS[name]
        status = of_forms[name]
        assert {key: status[key] for key in ("status", "output", "error") if key in status} == seen
        assert hazards_of(kinds.many, status["id"]) == hazards

    def test_nan_becomes_null_and_is_reported(self, kinds):
        status = wait_for(kinds.many, ask(kinds.many, "give_strange", name="nan"))
        assert (status["status"], status["output"]) == ("COMPLETED", None)
        assert hazards_of(kinds.many, status["id"]) == {"not-a-number"}

    def test_large_result_arrives_whole(self, kinds):
        job_id = ask(kinds.many, "give_text", num_bytes=5_000_000)
        assert wait_for(kinds.many, job_id)["output"] == "x" * 5_000_000

    @pytest.mark.parametrize("name", ["ValueError", "MemoryError"])
    def test_exception_is_a_failed_job_whose_error_is_json(self, kinds, name):
        job_id = ask(kinds.many, "fail", name=name, message="broken")
        status = wait_for(kinds.many, job_id)
        error = json.loads(status["error"])
        assert status["status"] == "FAILED"
        assert "output" not in status
        assert error["error_type"] == f"<class '{name}'>"
        assert error["error_message"] == "broken"
        assert f"{name}: broken" in error["error_traceback"]
        assert error["worker_id"] == error["hostname"] == status["workerId"]
        assert error["runpod_version"] == runpod.__version__

    def test_post_that_fails_is_repeated_for_5xx_only(self, kinds, tmp_path):
        gate = tmp_path / "gate"
        ids = {name: ask(kinds.many, "hold", until=str(gate)) for name in POSTS}
        for name, (action, value, count, _) in POSTS.items():
            fault = {"id": name, "at": "job-done", "action": action, "value": value}
            kinds.many.add_fault(**fault, count=count, job_id=ids[name])
        gate.touch()
        ended = {name: wait_for(kinds.many, job_id) for name, job_id in ids.items()}
        kinds.many.clear_faults()
        assert {status["output"] for status in ended.values()} == {"released"}
        executions = {name: kinds.many.job(job_id)["executions"] for name, job_id in ids.items()}
        assert executions == {name: needed for name, (*_, needed) in POSTS.items()}


class TestLostResults:
    """The SDK posts nothing, and in production the job hangs."""

    @pytest.mark.parametrize("name", LOSSES)
    def test_job_without_a_result_is_reported(self, emulator, kinds, name):
        until(lambda: hazards_of(emulator, kinds.lost[name]) == {"lost-result"})

    @pytest.mark.parametrize("name", LOSSES)
    def test_job_without_a_result_is_tried_again_and_given_up(self, emulator, kinds, name):
        status = wait_for(emulator, kinds.lost[name])
        assert (status["status"], status["retries"]) == ("FAILED", 1)
        assert status["error"] == "job timed out after 1 retries"
        assert emulator.job(kinds.lost[name])["executions"] == 2

    def test_lost_result_is_reported_long_before_its_job_is_given_up_on(self, emulator, kinds):
        job_id = kinds.lost["a set"]
        wait_for(emulator, job_id)
        recent = emulator.state()["hazards"]["recent"]
        reported_at = min(each["at"] for each in recent if each["job_id"] == job_id)
        requeued = next(
            event
            for event in emulator.job(job_id)["history"]
            if event["reason"].startswith("not in the worker's pings")
        )
        assert reported_at < requeued["at"] - QUICK.heartbeat_timeout_s / 2


class TestJob:
    def test_handler_gets_id_input_webhook_and_s3_config(self, emulator):
        s3_config = {"accessId": "a", "accessSecret": "s", "bucketName": "b", "endpointUrl": "e"}
        request = {"input": {"do": "report"}, "webhook": "http://127.0.0.1:9/"}
        job_id = submit(emulator, {**request, "s3Config": s3_config, "policy": {"ttl": 60_000}})
        job = wait_for(emulator, job_id)["output"]["job"]
        assert job == {"id": job_id, **request, "s3Config": s3_config}

    def test_progress_is_seen_in_status_until_the_result_replaces_it(self, emulator, tmp_path):
        gate = tmp_path / "gate"
        job_id = ask(emulator, "progress", values=["a start", {"percent": 50}], until=str(gate))
        status = until(lambda: in_progress_with(emulator, job_id, {"percent": 50}))
        assert status["workerId"] == worker_now(emulator)["id"]
        gate.touch()
        assert wait_for(emulator, job_id)["output"] == "released"

    def test_progress_that_comes_after_the_result_changes_nothing(self, emulator, tmp_path):
        gate = tmp_path / "gate"
        job_id = ask(emulator, "progress_afterwards", value="late", until=str(gate))
        assert wait_for(emulator, job_id)["output"] == "done"
        gate.touch()
        until(lambda: hazards_of(emulator, job_id) == {"late-progress"})
        status = status_of(emulator, job_id)
        assert (status["status"], status["output"]) == ("COMPLETED", "done")


class TestEnvironment:
    def test_worker_finds_its_platform(self, emulator, reports):
        status = reports[0]
        environ = status["output"]["environ"]
        assert environ["RUNPOD_POD_ID"] == status["workerId"]
        assert environ["RUNPOD_ENDPOINT_ID"] == "test"
        for name in ("GET_JOB", "POST_OUTPUT", "POST_STREAM", "PING"):
            url = environ[f"RUNPOD_WEBHOOK_{name}"]
            assert url.startswith(f"{emulator.base_url}/test/")
            assert "?gpu=" in url

    def test_worker_has_a_key_of_its_own_and_never_the_clients(self, emulator, reports):
        environs = [status["output"]["environ"] for status in reports]
        assert environs[0]["RUNPOD_AI_API_KEY"] != environs[1]["RUNPOD_AI_API_KEY"]
        assert all(emulator.api_key not in value for each in environs for value in each.values())

    def test_each_worker_has_a_home_of_its_own(self, reports):
        homes = [status["output"]["environ"]["HOME"] for status in reports]
        assert [Path(home).name for home in homes] == [each["workerId"] for each in reports]


class TestConcurrency:
    def test_jobs_of_an_async_handler_run_at_the_same_time(self, kinds):
        ids = [ask(kinds.four, "meet", others=4) for _ in range(4)]
        assert {wait_for(kinds.four, job_id)["output"] for job_id in ids} == {0, 1, 2, 3}

    def test_no_more_jobs_are_taken_than_there_are_free_slots(self, kinds, tmp_path):
        gates = [tmp_path / str(n) for n in range(6)]
        ids = [ask(kinds.four, "hold", until=str(gate)) for gate in gates]
        until(lambda: running(kinds.four) == ids[:4])
        gates[0].touch()
        wait_for(kinds.four, ids[0])
        until(lambda: running(kinds.four) == ids[1:5])
        for gate in gates:
            gate.touch()
        for job_id in ids:
            wait_for(kinds.four, job_id)

    def test_changed_concurrency_counts_once_what_was_in_flight_has_ended(self, kinds, tmp_path):
        wait_for(kinds.four, ask(kinds.four, "set_concurrency", value=2))
        # a poll that was open before still asks for the old number
        wait_for(kinds.four, ask(kinds.four, "give", value=1))
        gates = [tmp_path / str(n) for n in range(3)]
        ids = [ask(kinds.four, "hold", until=str(gate)) for gate in gates]
        until(lambda: running(kinds.four) == ids[:2])
        gates[0].touch()
        until(lambda: running(kinds.four) == ids[1:])
        for gate in gates:
            gate.touch()
        for job_id in ids:
            wait_for(kinds.four, job_id)
        wait_for(kinds.four, ask(kinds.four, "set_concurrency", value=4))

    def test_results_of_a_blocking_handler_arrive_when_the_last_has_ended(self, kinds):
        last = max(wait_for(kinds.blocking, each)["output"]["ended_at"] for each in kinds.blocked)
        events = [kinds.blocking.job(each)["history"][-1] for each in kinds.blocked]
        assert {event["reason"] for event in events} == {"result"}
        assert all(event["at"] >= last for event in events)


class TestGenerators:
    @pytest.mark.parametrize("kind", ["plain", "aggregate"])
    def test_items_are_streamed_in_order_and_given_out_once(self, kinds, kind):
        platform = getattr(kinds, kind)
        items = [1, {"a": 2}, "three", None, ["five"]]
        job_id = submit(platform, {"input": {"items": items}})
        assert streamed(platform, job_id) == items
        assert call(platform, f"/stream/{job_id}")["stream"] == []

    @pytest.mark.parametrize(("kind", "output"), [("plain", []), ("aggregate", ["a", "b"])])
    def test_items_are_the_output_if_they_are_aggregated(self, kinds, kind, output):
        platform = getattr(kinds, kind)
        status = wait_for(platform, submit(platform, {"input": {"items": ["a", "b"]}}))
        assert (status["status"], status["output"]) == ("COMPLETED", output)

    @pytest.mark.parametrize("kind", ["plain", "aggregate"])
    def test_exception_after_some_items_fails_the_job_with_a_text(self, kinds, kind):
        platform = getattr(kinds, kind)
        status = wait_for(platform, submit(platform, {"input": {"items": ["a", "raise", "b"]}}))
        assert status["status"] == "FAILED"
        assert status["error"].startswith("handler: broken \ntraceback: Traceback")
        assert streamed(platform, status["id"]) == ["a"]

    def test_yielded_error_ends_the_job_and_is_not_streamed(self, kinds):
        items = ["a", {"error": "no such model"}, "b"]
        status = wait_for(kinds.plain, submit(kinds.plain, {"input": {"items": items}}))
        assert (status["status"], status["error"]) == ("FAILED", "no such model")
        assert streamed(kinds.plain, status["id"]) == ["a"]


class TestCancelling:
    def test_waiting_job_never_reaches_the_handler(self, emulator, tmp_path):
        gate = tmp_path / "gate"
        first = ask(emulator, "hold", until=str(gate))
        until(lambda: running(emulator) == [first])
        waiting = ask(emulator, "give", value=1)
        assert call(emulator, f"/cancel/{waiting}", method="POST")["status"] == "CANCELLED"
        gate.touch()
        wait_for(emulator, first)
        assert emulator.job(waiting)["executions"] == 0

    def test_running_async_handler_is_cancelled_and_its_slot_is_free(self, emulator, tmp_path):
        note = tmp_path / "note"
        job_id = ask(emulator, "hold", until=str(tmp_path / "never"), note=str(note))
        until(lambda: running(emulator) == [job_id])
        time.sleep(0.3)  # a stop signal that comes before the handler has started is ignored
        before = worker_now(emulator)["id"]
        call(emulator, f"/cancel/{job_id}", method="POST")
        until(note.exists)
        assert wait_for(emulator, ask(emulator, "give", value=1))["workerId"] == before
        assert status_of(emulator, job_id)["status"] == "CANCELLED"
        assert hazards_of(emulator, job_id) == set()

    def test_result_of_a_handler_that_swallows_it_is_dropped(self, emulator, tmp_path):
        job_id = ask(emulator, "swallow", until=str(tmp_path / "never"))
        until(lambda: running(emulator) == [job_id])
        time.sleep(0.3)
        call(emulator, f"/cancel/{job_id}", method="POST")
        until(lambda: hazards_of(emulator, job_id) == {"late-result"})
        assert "output" not in status_of(emulator, job_id)

    def test_worker_that_a_handler_blocks_is_killed_and_replaced(self, kinds, tmp_path):
        job_id = submit(kinds.blocking, {"input": {"until": str(tmp_path / "never")}})
        until(lambda: running(kinds.blocking) == [job_id])
        time.sleep(0.3)
        before = worker_now(kinds.blocking)["id"]
        call(kinds.blocking, f"/cancel/{job_id}", method="POST")
        until(lambda: hazards_of(kinds.blocking, job_id) == {"blocked-handler"})
        status = wait_for(kinds.blocking, submit(kinds.blocking, {"input": {"seconds": 0}}))
        assert num_hazards(kinds.blocking, "blocked-handler") == 1
        assert status["workerId"] != before
        assert status.get("retries", 0) == 0


def running(platform):
    """Ids of the jobs that workers hold, oldest first."""
    jobs = platform.state()["endpoints"]["test"]["recent_jobs"]
    return [job["id"] for job in reversed(jobs) if job["status"] == "IN_PROGRESS"]


def in_progress_with(platform, job_id, output):
    status = status_of(platform, job_id)
    assert status["status"] in ("IN_QUEUE", "IN_PROGRESS")
    return status if status.get("output") == output else None


def streamed(platform, job_id):
    """All items, as the SDK's client collects them."""
    items = []
    while (answer := call(platform, f"/stream/{job_id}?wait=5000"))["stream"] or answer[
        "status"
    ] not in ("COMPLETED", "FAILED"):
        items += [each["output"] for each in answer["stream"]]
    return items
