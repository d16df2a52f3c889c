"""How workers begin and end, and what becomes of their jobs: real SDK workers, real signals.

Where only processes matter, one that says nothing stands for the SDK, which takes seconds to start.
"""

import itertools
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
import requests
from support.platform import call, submit, wait_for

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.settings import Scaler
from runpod_emulator.testing import QUICK, RunningEmulator, running_emulator, settings_for

pytestmark = pytest.mark.sdk

DEADLINE_S = 60
POLL_S = 0.05
LIFE = replace(QUICK, heartbeat_timeout_s=6.0, terminate_grace_s=20.0, min_execution_timeout_s=0.5)

ENDS = {
    "sys.exit(3)": ({"do": "leave", "code": 3}, "exited with 3"),
    "os._exit(7)": ({"do": "leave", "code": 7, "is_rude": True}, "exited with 7"),
    "KeyboardInterrupt": ({"do": "fail", "name": "KeyboardInterrupt"}, "ended by signal 2"),
}
"""What a handler does, and how its worker ends by it."""


class Platforms:
    """Emulators that are started together, since a worker's start takes seconds.

    `life` has two workers, so that there is always another one while the first is replaced.
    """

    def __init__(self, handlers, directory, stack):
        self._handlers = handlers
        self._directory = directory
        self._stack = stack
        self.all = []
        refresh = {"REFRESH_WORKER": "1"}
        self.life = self._start("many_sided", LIFE, workers_min=2, workers_max=2)
        self.ends = self._start("many_sided", replace(LIFE, max_retries=0))
        self.refreshed = self._start("many_sided", LIFE, env=refresh, workers_max=1)
        self.refreshed_generator = self._start("generator", LIFE, env=refresh)
        self.timed_out = self._start(
            "blocking", replace(LIFE, execution_timeout_status="TIMED_OUT")
        )
        # these start the workers, of which there are no more than there are jobs
        self.ended = {
            name: submit(self.ends, {"input": given}) for name, (given, _) in ENDS.items()
        }
        self.refreshed_stream = submit(self.refreshed_generator, {"input": {"items": [1]}})
        self.refreshes = [ask(self.refreshed, "give", value=value) for value in "ab"]
        self.blocked = submit(
            self.timed_out, {"input": {"seconds": 600}, "policy": {"executionTimeout": 1000}}
        )

    def _start(self, name, behaviour, **endpoint):
        settings = settings_for(
            self._handlers / f"{name}.py",
            self._directory / str(len(self.all)),
            behaviour=behaviour,
            scaler=Scaler.REQUEST_COUNT,
            scaler_value=1.0,
            rate_limits=False,
            **endpoint,
        )
        self.all.append(self._stack.enter_context(running_emulator(settings)))
        return self.all[-1]


@pytest.fixture(scope="module")
def platforms(handlers, tmp_path_factory):
    with ExitStack() as stack:
        platforms = Platforms(handlers, tmp_path_factory.mktemp("platforms"), stack)
        yield platforms
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(RunningEmulator.stop, platforms.all))


@pytest.fixture
def life(platforms):
    """Both workers are there and idle."""
    platforms.life.wait_until(lambda state: states_of(state) == ["IDLE", "IDLE"], DEADLINE_S)
    yield platforms.life
    platforms.life.clear_faults()


@pytest.fixture
def gate(tmp_path):
    """The file that a handler waits for."""
    return tmp_path / "gate"


def ask(platform, do, **more):
    return submit(platform, {"input": {"do": do, **more}})


def endpoint_of(state):
    return state["endpoints"]["test"]


def states_of(state):
    return [str(worker["state"]) for worker in endpoint_of(state)["workers"]]


def worker_of(platform, job_id):
    """The worker that runs the job, once the handler has had time to begin."""
    until(lambda: platform.job(job_id)["status"] == "IN_PROGRESS")
    worker_id = platform.job(job_id)["worker_id"]
    workers = endpoint_of(platform.state())["workers"]
    return next(worker for worker in workers if worker["id"] == worker_id)


def ending_of(platform, worker_id):
    """Why a worker ended, once it has."""
    is_it = lambda worker: worker["id"] == worker_id  # noqa: E731
    state = platform.wait_until(
        lambda state: any(map(is_it, endpoint_of(state)["retired"])), DEADLINE_S
    )
    return next(filter(is_it, endpoint_of(state)["retired"]))["reason"]


def reasons_of(platform, job_id):
    return [event["reason"] for event in platform.job(job_id)["history"]]


def hazards_of(platform, job_id):
    recent = platform.state()["hazards"]["recent"]
    return {str(each["kind"]) for each in recent if each["job_id"] == job_id}


def strike(platform, worker, action, **query):
    """As a person does it through `/emulator`."""
    url = f"{platform.url}/emulator/workers/{worker['id']}/{action}"
    headers = {"Authorization": f"Bearer {platform.api_key}"}
    with requests.Session() as http:
        http.trust_env = False
        assert http.post(url, params=query, headers=headers, timeout=DEADLINE_S).ok


def until(holds):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(POLL_S)
    return found


class TestReplacing:
    @pytest.mark.parametrize(
        ("more", "seen"),
        [
            ({"a": 1}, {"status": "COMPLETED", "output": {"a": 1}}),
            ({"error": "out of memory"}, {"status": "FAILED", "error": "out of memory"}),
        ],
    )
    def test_worker_is_replaced_after_a_result_that_asks_for_it(self, life, more, seen):
        job_id = ask(life, "give", value={"refresh_worker": True, **more})
        status = wait_for(life, job_id)
        assert {key: status[key] for key in ("status", "output", "error") if key in status} == seen
        assert ending_of(life, status["workerId"]) == "refresh_worker: exited with 0"

    def test_worker_is_replaced_after_each_job_if_it_is_configured_so(self, platforms):
        platform = platforms.refreshed
        statuses = [wait_for(platform, job_id) for job_id in platforms.refreshes]
        assert [status["output"] for status in statuses] == ["a", "b"]
        assert statuses[0]["workerId"] != statuses[1]["workerId"]
        assert all(platform.job(job_id)["executions"] == 1 for job_id in platforms.refreshes)
        assert ending_of(platform, statuses[0]["workerId"]) == "refresh_worker: exited with 0"

    def test_generators_worker_is_replaced_if_it_is_configured_so(self, platforms):
        platform = platforms.refreshed_generator
        status = wait_for(platform, platforms.refreshed_stream)
        assert status["status"] == "COMPLETED"
        assert ending_of(platform, status["workerId"]) == "refresh_worker: exited with 0"


class TestDraining:
    def test_drained_worker_finishes_its_job_and_gets_no_other(self, life, gate):
        # by its progress the job has begun: one that the SDK has just received is dropped
        held = ask(life, "progress", values=["begun"], until=str(gate))
        until(lambda: call(life, f"/status/{held}").get("output") == "begun")
        drained = worker_of(life, held)
        strike(life, drained, "drain")
        others = [wait_for(life, ask(life, "give", value=n)) for n in range(2)]
        assert drained["id"] not in {status["workerId"] for status in others}
        gate.touch()
        status = wait_for(life, held)
        assert (status["output"], status["workerId"]) == ("released", drained["id"])
        assert life.job(held)["executions"] == 1
        assert ending_of(life, drained["id"]) == "drained by hand: exited with 0"

    def test_idle_worker_ends_at_once_although_its_polls_are_held(self, life):
        idle = endpoint_of(life.state())["workers"][0]
        started_at = time.monotonic()
        strike(life, idle, "drain")
        assert ending_of(life, idle["id"]) == "drained by hand: exited with 0"
        assert time.monotonic() - started_at < LIFE.poll_hold_s / 2

    def test_spot_interruption_ends_a_worker_in_the_middle_of_a_job(self, life, gate):
        life.add_fault(at="job-taken", action="spot", value=0.5, count=1)
        job_id = ask(life, "hold", until=str(gate))
        until(lambda: life.job(job_id)["retries"] == 1)
        first = endpoint_of(life.state())["retired"][-1]["id"]
        gate.touch()
        status = wait_for(life, job_id)
        assert status["output"] == "released"
        assert status["workerId"] != first
        assert "worker lost: did not end in time after SIGTERM: ended by signal 9" in reasons_of(
            life, job_id
        )


class TestDying:
    def test_job_of_a_killed_worker_runs_again_on_another(self, life, gate):
        job_id = ask(life, "hold", until=str(gate))
        killed = worker_of(life, job_id)
        os.kill(killed["pid"], signal.SIGKILL)
        until(lambda: life.job(job_id)["executions"] == 2)
        gate.touch()
        status = wait_for(life, job_id)
        assert (status["status"], status["output"]) == ("COMPLETED", "released")
        assert status["retries"] == 1
        assert status["workerId"] != killed["id"]
        assert reasons_of(life, job_id) == [
            "submitted",
            "taken",
            "worker lost: ended by signal 9",
            "taken",
            "result",
        ]

    def test_job_is_given_up_when_its_second_worker_is_lost_too(self, life):
        before = call(life, "/health")["jobs"]
        life.add_fault(at="job-taken", action="kill", count=2)
        status = wait_for(life, ask(life, "sleep", seconds=600))
        assert (status["status"], status["retries"]) == ("FAILED", 1)
        assert status["error"] == "job timed out after 1 retries"
        after = call(life, "/health")["jobs"]
        assert after["retried"] == before["retried"] + 1
        assert after["failed"] == before["failed"] + 1

    @pytest.mark.parametrize("name", ENDS)
    def test_handler_that_ends_its_worker_loses_its_job(self, platforms, name):
        _, ending = ENDS[name]
        job_id = platforms.ended[name]
        status = wait_for(platforms.ends, job_id)
        assert (status["status"], status["error"]) == ("FAILED", "job timed out after 0 retries")
        assert reasons_of(platforms.ends, job_id)[-1] == f"given up: worker lost: {ending}"

    def test_frozen_worker_is_killed_for_its_missing_pings(self, life):
        life.add_fault(at="job-taken", action="freeze", count=1)
        status = wait_for(life, ask(life, "sleep", seconds=0.5))
        assert (status["status"], status["retries"]) == ("COMPLETED", 1)
        [lost] = [each for each in reasons_of(life, status["id"]) if "lost" in each]
        assert lost.startswith("worker lost: no ping for ")
        assert lost.endswith("ended by signal 9")


class TestExecutionTimeout:
    def test_async_handler_is_cancelled_and_its_job_has_failed(self, life, gate, tmp_path):
        note = tmp_path / "note"
        asked = {"do": "hold", "until": str(gate), "note": str(note)}
        job_id = submit(life, {"input": asked, "policy": {"executionTimeout": 1000}})
        status = wait_for(life, job_id)
        assert (status["status"], status["error"]) == ("FAILED", "executionTimeout exceeded")
        until(note.exists)
        workers = endpoint_of(life.state())["workers"]
        assert status["workerId"] in {worker["id"] for worker in workers}, "it must live on"
        assert hazards_of(life, job_id) == set()

    def test_worker_that_a_handler_blocks_is_killed_for_it(self, platforms):
        platform = platforms.timed_out
        status = wait_for(platform, platforms.blocked)
        assert (status["status"], status["error"]) == ("TIMED_OUT", "executionTimeout exceeded")
        ending = f"job {platforms.blocked} did not react to job-stop: ended by signal 9"
        assert ending_of(platform, status["workerId"]) == ending
        assert hazards_of(platform, platforms.blocked) == {"blocked-handler"}
        retried = platform.job(platforms.blocked)
        assert (retried["retries"], retried["executions"]) == (0, 1)


class TestNeverReady:
    @pytest.fixture(scope="class")
    @classmethod
    def hopeless(cls, handlers, tmp_path_factory):
        """Endpoints whose workers never take a job; `test` is the one that crashes."""
        directory = tmp_path_factory.mktemp("hopeless")

        def one_worker(endpoint_id, name, **more):
            return settings_for(
                handlers / f"{name}.py",
                directory,
                endpoint_id=endpoint_id,
                workers_min=1,
                workers_max=1,
                **more,
            )

        each = [
            one_worker("test", "never_ready", env={"HOW": "crash"}),
            one_worker("unfit", "never_ready", env={"HOW": "unfit"}),
            one_worker("bad-modifier", "never_ready", env={"HOW": "bad_modifier"}),
            one_worker("slow", "silent", init_timeout_s=1.0),
            one_worker("slow-by-variable", "silent", env={"RUNPOD_INIT_TIMEOUT": "1"}),
        ]
        endpoints = tuple(settings.endpoints[0] for settings in each)
        with running_emulator(replace(each[0], endpoints=endpoints)) as running:
            yield running

    def reason(self, platform, endpoint_id, part):
        """The first of an unhealthy worker's reasons with this part."""

        def reasons(state):
            endpoint = state["endpoints"][endpoint_id]
            workers = [*endpoint["workers"], *endpoint["retired"]]
            return [w["reason"] for w in workers if w["reason"] and part in w["reason"]]

        return reasons(platform.wait_until(reasons, DEADLINE_S))[0]

    def test_worker_that_crashes_says_why_with_the_end_of_its_log(self, hopeless):
        reason = self.reason(hopeless, "test", "exited")
        assert reason == "exited with 1; the end of its log:\nno weights found"

    def test_jobs_wait_while_their_workers_crash_and_the_endpoint_shows_it(self, hopeless):
        job_id = submit(hopeless, {"input": {"n": 1}})
        hopeless.wait_until(lambda state: endpoint_of(state)["failures_in_a_row"] >= 2)
        assert call(hopeless, f"/status/{job_id}")["status"] == "IN_QUEUE"
        hopeless.wait_until(lambda state: states_of(state) == ["UNHEALTHY"])
        assert hopeless.state()["hazards"]["counts"]["crash-loop"] >= 2

    def test_pause_between_starts_grows(self, hopeless):
        state = hopeless.wait_until(lambda state: endpoint_of(state)["failures_in_a_row"] >= 4)
        endpoint = endpoint_of(state)
        starts = sorted(w["created_at"] for w in [*endpoint["workers"], *endpoint["retired"]])
        pauses = [later - earlier for earlier, later in itertools.pairwise(starts[:4])]
        assert pauses == sorted(pauses)
        assert pauses[-1] > 2 * pauses[0]

    def test_failed_fitness_check_is_named(self, hopeless):
        part = "fitness check weights_are_there: RuntimeError: no weights found: exited with 1"
        assert self.reason(hopeless, "unfit", part)

    def test_concurrency_modifier_that_returns_none_ends_the_worker(self, hopeless):
        assert "exited with 1" in self.reason(hopeless, "bad-modifier", "the end of its log")

    @pytest.mark.parametrize("endpoint_id", ["slow", "slow-by-variable"])
    def test_worker_that_does_not_ask_for_work_in_time_is_unhealthy(self, hopeless, endpoint_id):
        reason = self.reason(hopeless, endpoint_id, "not ready after 1 s")
        assert reason.startswith("not ready after 1 s: ended by signal 9")
        recent = hopeless.state()["hazards"]["recent"]
        told = [
            each["worker_id"]
            for each in recent
            if each["endpoint_id"] == endpoint_id and each["kind"] == "slow-start"
        ]
        assert told, "nothing is said"
        assert len(told) == len(set(told)), "it is said more than once"


class TestScaling:
    @pytest.fixture
    def start(self, handlers, tmp_path):
        """An emulator whose workers say nothing, so that its jobs stay in the queue."""
        with ExitStack() as stack:

            def start(behaviour=QUICK, **endpoint):
                settings = settings_for(
                    handlers / "silent.py", tmp_path, behaviour=behaviour, **endpoint
                )
                return stack.enter_context(running_emulator(settings))

            yield start

    def test_request_count_wants_a_worker_for_each_so_many_requests(self, start):
        platform = start(scaler=Scaler.REQUEST_COUNT, scaler_value=2.0, workers_max=9)
        for n in range(5):
            submit(platform, {"input": {"n": n}})
        platform.wait_until(lambda state: states_of(state) == ["INITIALIZING"] * 3)
        call(platform, "/purge-queue", method="POST")
        self.is_all_that_ever_was(platform, 3)

    def test_no_more_workers_are_started_than_the_endpoint_may_have(self, start):
        platform = start(scaler=Scaler.REQUEST_COUNT, scaler_value=1.0, workers_max=2)
        for n in range(5):
            submit(platform, {"input": {"n": n}})
        platform.wait_until(lambda state: len(states_of(state)) >= 2)
        self.is_all_that_ever_was(platform, 2)

    def test_queue_delay_adds_one_worker_after_the_other(self, start):
        platform = start(scaler=Scaler.QUEUE_DELAY, scaler_value=0.5, workers_max=3)
        for n in range(5):
            submit(platform, {"input": {"n": n}})
        state = platform.wait_until(lambda state: len(states_of(state)) >= 3)
        starts = [worker["created_at"] for worker in endpoint_of(state)["workers"]]
        assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(starts))
        self.is_all_that_ever_was(platform, 3)

    def test_queue_delay_adds_as_many_at_once_as_the_switch_says(self, start):
        behaviour = Behaviour(workers_per_step=3)
        platform = start(behaviour, scaler=Scaler.QUEUE_DELAY, scaler_value=0.5, workers_max=9)
        for n in range(4):
            submit(platform, {"input": {"n": n}})
        state = platform.wait_until(lambda state: len(states_of(state)) >= 4)
        starts = [worker["created_at"] for worker in endpoint_of(state)["workers"]]
        assert len(set(starts[1:])) == 1 or max(starts[1:]) - min(starts[1:]) < 0.5

    def test_workers_without_a_gpu_are_throttled_and_cost_nothing(self, start):
        platform = start(scaler=Scaler.REQUEST_COUNT, scaler_value=1.0, workers_max=3, capacity=1)
        for n in range(3):
            submit(platform, {"input": {"n": n}})
        states = ["INITIALIZING", "THROTTLED", "THROTTLED"]
        platform.wait_until(lambda state: states_of(state) == states)
        counts = call(platform, "/health")["workers"]
        assert (counts["initializing"], counts["throttled"]) == (1, 2)
        workers = endpoint_of(platform.state())["workers"]
        assert [worker["bill"]["billed_s"] > 0 for worker in workers] == [True, False, False]
        os.kill(workers[0]["pid"], signal.SIGKILL)
        states = ["UNHEALTHY", "INITIALIZING", "THROTTLED"]
        platform.wait_until(lambda state: states_of(state) == states)

    def test_endpoint_has_no_worker_before_its_first_job(self, start):
        platform = start()
        time.sleep(0.3)
        self.is_all_that_ever_was(platform, 0)

    def is_all_that_ever_was(self, platform, num_workers):
        endpoint = endpoint_of(platform.state())
        assert len([*endpoint["workers"], *endpoint["retired"]]) == num_workers


class TestIdling:
    def test_idle_worker_is_stopped_and_its_whole_life_is_billed(self, handlers, tmp_path):
        settings = settings_for(handlers / "many_sided.py", tmp_path, idle_timeout_s=1.0)
        with running_emulator(settings) as platform:
            status = wait_for(platform, ask(platform, "sleep", seconds=0.5))
            assert ending_of(platform, status["workerId"]) == "idle: exited with 0"
            endpoint = endpoint_of(platform.state())
            assert endpoint["workers"] == []
            [worker] = endpoint["retired"]
            parts = [worker["bill"][name] for name in ("start_s", "run_s", "idle_s")]
            assert worker["created_at"] + parts[0] <= worker["ready_at"] + 1e-5
            assert parts[0] > 0
            assert parts[1] >= 0.5
            assert parts[2] >= 1.0
            assert worker["bill"]["billed_s"] == math.ceil(sum(parts))
            assert endpoint["billed_s"] == worker["bill"]["billed_s"]
            assert endpoint["cost_usd"] == worker["cost_usd"] > 0

    def test_bill_of_an_endpoint_is_that_of_all_its_workers(self, life):
        endpoint = endpoint_of(life.state())
        workers = [*endpoint["workers"], *endpoint["retired"]]
        assert len(workers) > 2
        assert endpoint["billed_s"] == sum(each["bill"]["billed_s"] for each in workers)
        assert endpoint["cost_usd"] == pytest.approx(sum(each["cost_usd"] for each in workers))
