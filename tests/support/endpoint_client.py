"""An endpoint of an emulator over plain HTTP, for tests that look at every field."""

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import requests

from runpod_emulator.testing import QUICK, running_emulator, settings_for

DEADLINE_S = 30.0
POLL_S = 0.05


def until(condition, deadline_s=DEADLINE_S):
    """What `condition` returns, once that is true."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not so after {deadline_s:.0f} s"
        time.sleep(POLL_S)
    return found


class EndpointClient:
    """Sends the API key unless told otherwise. Paths are below `/v2/{endpoint}`."""

    def __init__(self, emulator, endpoint_id="test"):
        self._url = f"{emulator.base_url}/{endpoint_id}"
        self._headers = {"Authorization": f"Bearer {emulator.api_key}"}

    def request(self, method, path, *, headers=None, **options):
        sent = self._headers if headers is None else headers
        return requests.request(method, self._url + path, headers=sent, timeout=60, **options)

    def get(self, path, **query):
        return self.request("GET", path, params=query)

    def post(self, path, body=None, **query):
        return self.request("POST", path, json=body, params=query)

    def submit(self, asked=None, **extras):
        """The id of a new job; `extras` are keys beside `input`."""
        answer = self.post("/run", {"input": {"n": 1} if asked is None else asked, **extras})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def status(self, job_id):
        return self.get(f"/status/{job_id}").json()

    def wait_for(self, job_id, status):
        """The status object once the job has this status."""
        return until(lambda: _if(self.status(job_id), status))

    def wait_until_gone(self, job_id):
        until(lambda: self.get(f"/status/{job_id}").status_code == 404)


def _can_work(session):
    return session.process is not None and session.state.can_take


def _if(body, status):
    return body if body.get("status") == status else None


IDLE_COMMAND = ("sh", "-c", "echo started; exec sleep 600")
"""A worker that does nothing, for a `HandWorker` to speak for."""


class HandWorker:
    """Speaks for a worker that is there for jobs, so that a test decides what happens when."""

    def __init__(self, emulator, endpoint_id="test"):
        fleet = emulator.gateway.endpoints[endpoint_id].fleet
        self._session = until(lambda: next(filter(_can_work, list(fleet.workers.values())), None))
        self.id = self._session.id
        self._url = f"{emulator.base_url}/{endpoint_id}"

    def take(self):
        """The next job as the platform hands it out; None without one."""
        answer = self.request("GET", f"/job-take/{self.id}?job_in_progress=0")
        return answer.json() if answer.status_code == 200 else None

    def done(self, job_id, **result):
        return self.request("POST", f"/job-done/{self.id}/{job_id}?isStream=false", json=result)

    def stream(self, job_id, output):
        path = f"/job-stream/{self.id}/{job_id}?isStream=false"
        return self.request("POST", path, json={"output": output})

    def request(self, method, path, **options):
        headers = {"Authorization": self._session.token}
        return requests.request(method, self._url + path, headers=headers, timeout=60, **options)


@contextmanager
def worked_by_hand(state_dir, *, command=IDLE_COMMAND, num_workers=1, **behaviour):
    """An emulator, a client of its endpoint, and the worker that the test is.

    Such a worker sends no pings, so it is trusted for a minute.
    """
    chosen = settings_for(
        Path("none.py"),
        state_dir,
        behaviour=replace(QUICK, **{"heartbeat_timeout_s": 60.0, **behaviour}),
        workers_min=num_workers,
        workers_max=num_workers,
        rate_limits=False,
    )
    (endpoint,) = chosen.endpoints
    with running_emulator(
        replace(chosen, endpoints=(replace(endpoint, command=command),))
    ) as emulator:
        yield emulator, EndpointClient(emulator), HandWorker(emulator)
