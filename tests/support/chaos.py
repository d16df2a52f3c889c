"""Faults at random moments of many jobs: workers end, a bucket and a receiver fail."""

import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import KeysView
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from support.faulty_proxy import Fault, FaultyProxy

from runpod_emulator.testing import RunningEmulator

OUTAGES = (Fault.DROP, Fault.INTERNAL_ERROR, Fault.OVERLOADED)
SINGLE_FAULTS = (
    *OUTAGES,
    Fault.TOO_MANY_REQUESTS,
    Fault.RESET_BEFORE_BODY,
    Fault.RESET_IN_BODY,
    Fault.CUT,
    Fault.SLOW,
    Fault.LOSE_ANSWER,
)

POSTED, ARRIVED = "job-done", "job-result"
RESULT_FAULTS = (
    {"id": "HTTP 503", "at": POSTED, "action": "status", "value": 503, "probability": 0.04},
    {"id": "HTTP 500", "at": POSTED, "action": "status", "value": 500, "probability": 0.04},
    {"id": "HTTP 429", "at": POSTED, "action": "status", "value": 429, "probability": 0.04},
    {"id": "reset, not taken", "at": POSTED, "action": "drop", "probability": 0.04},
    {"id": "reset, but taken", "at": POSTED, "action": "drop-reply", "probability": 0.04},
    {"id": "HTTP 404", "at": POSTED, "action": "status", "value": 404, "after": 10, "every": 20},
    {"id": "worker killed", "at": ARRIVED, "action": "kill", "after": 25, "every": 200},
)
"""Faults of the posts of results. The last two lose a result for good."""


NUM_CALM_JOBS = 25
"""Jobs that are left after the last fault: more than the workers have at once, so that one has."""


class Action(StrEnum):
    KILL = "worker killed"
    TERMINATE = "worker terminated"
    BUCKET_OUTAGE = "bucket down"
    RECEIVER_OUTAGE = "receiver down"
    BUCKET_FAULT = "fault of the bucket"
    RECEIVER_FAULT = "fault of the receiver"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Number of jobs, and of faults while they are served; `outage_s` is the longest."""

    num_jobs: int
    num_signals: int
    num_outages: int
    num_faults: int
    outage_s: float
    seed: int = 15

    def counts(self) -> dict[Action, int]:
        return {
            Action.KILL: self.num_signals,
            Action.TERMINATE: self.num_signals,
            Action.BUCKET_OUTAGE: self.num_outages,
            Action.RECEIVER_OUTAGE: self.num_outages,
            Action.BUCKET_FAULT: self.num_faults,
            Action.RECEIVER_FAULT: self.num_faults,
        }


@dataclass(kw_only=True, eq=False)
class Chaos:
    """Carries out a plan that depends on the seed and on the number of jobs that have ended.

    `signals` are those that workers have got, by worker, each at most one; `ends` are the reasons
    for which workers have gone.
    """

    platform: RunningEmulator
    bucket: FaultyProxy
    receiver: FaultyProxy
    extent: Extent
    signals: dict[str, signal.Signals] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    num_done: Counter[Action] = field(default_factory=Counter)
    outages_s: defaultdict[Action, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self._random = random.Random(self.extent.seed)
        actions = [each for each, count in self.extent.counts().items() for _ in range(count)]
        last = self.extent.num_jobs - NUM_CALM_JOBS
        self._plan = sorted((self._random.uniform(0, last), action) for action in actions)
        self._outage_ends: dict[Action, float] = {}
        for rule in RESULT_FAULTS:
            self.platform.add_fault(**rule)

    def run(self, pause_s: float = 0.1) -> None:
        """Return once all jobs have ended."""
        while (num_ended := self._num_ended()) < self.extent.num_jobs:
            self._end_outages()
            while self._plan and self._plan[0][0] <= num_ended and self._strike(self._plan[0][1]):
                self._plan.pop(0)
            time.sleep(pause_s)
        assert not self._plan, "all faults were to happen while there were jobs"
        self.platform.wait_until(lambda state: self._note_ends(state) >= self.signals.keys())

    def end_faults(self) -> None:
        self.bucket.outage = self.receiver.outage = None
        self.bucket.faults.clear()
        self.receiver.faults.clear()
        self.platform.clear_faults()

    def num_result_faults(self) -> dict[str, int]:
        return {str(each["id"]): each["hits"] for each in self.platform.state()["faults"]}

    def _num_ended(self) -> int:
        state = self.platform.state()
        self._note_ends(state)
        jobs = state["endpoints"]["test"]["jobs"]
        return sum(jobs[status] for status in ("COMPLETED", "FAILED"))

    def _note_ends(self, state: dict[str, Any]) -> KeysView[str]:
        """Returns all workers that have gone; the platform remembers the last ones."""
        retired = state["endpoints"]["test"]["retired"]
        self.ends |= {each["id"]: each["reason"] for each in retired}
        return self.ends.keys()

    def _strike(self, action: Action) -> bool:
        """Return whether it was possible now."""
        match action:
            case Action.KILL:
                is_done = self._signal(signal.SIGKILL)
            case Action.TERMINATE:
                is_done = self._signal(signal.SIGTERM)
            case Action.BUCKET_OUTAGE | Action.RECEIVER_OUTAGE:
                is_done = self._begin_outage(action)
            case Action.BUCKET_FAULT | Action.RECEIVER_FAULT:
                self._proxy(action).faults.append(self._random.choice(SINGLE_FAULTS))
                is_done = True
        self.num_done[action] += is_done
        return is_done

    def _signal(self, number: signal.Signals) -> bool:
        """Send a signal to a worker that has jobs, without the emulator."""
        workers = self.platform.state()["endpoints"]["test"]["workers"]
        busy = [each for each in workers if each["pid"] and each["jobs"]]
        busy = [each for each in busy if each["id"] not in self.signals]
        if not busy:
            return False
        worker = self._random.choice(busy)
        self.signals[worker["id"]] = number
        send = os.killpg if number is signal.SIGKILL else os.kill  # pings go on while it drains
        send(worker["pid"], number)
        return True

    def _begin_outage(self, action: Action) -> bool:
        proxy = self._proxy(action)
        if proxy.outage:
            return False
        seconds = self._random.uniform(1, self.extent.outage_s)
        proxy.outage = self._random.choice(OUTAGES)
        self._outage_ends[action] = time.monotonic() + seconds
        self.outages_s[action] += seconds
        return True

    def _end_outages(self) -> None:
        for action, end in [*self._outage_ends.items()]:
            if time.monotonic() >= end:
                self._proxy(action).outage = None
                del self._outage_ends[action]

    def _proxy(self, action: Action) -> FaultyProxy:
        is_buckets = action in (Action.BUCKET_OUTAGE, Action.BUCKET_FAULT)
        return self.bucket if is_buckets else self.receiver
