"""The platform's limits: requests in a time, requests at once, and jobs queued.

It knows no HTTP; callers answer `RateLimited` with status 429.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from runpod_emulator.settings import EndpointSettings

WINDOW_S = 10.0
BUSY_RETRY_S = 1.0
"""A guess of the time until a concurrent request ends, which is unknown."""

QUEUE_FREE_JOBS = 50
QUEUE_JOBS_PER_WORKER = 500


class Operation(StrEnum):
    """A client operation of an endpoint, named as in the path."""

    RUN = "run"
    RUNSYNC = "runsync"
    STATUS = "status"
    STATUS_SYNC = "status-sync"
    STREAM = "stream"
    CANCEL = "cancel"
    RETRY = "retry"
    PURGE_QUEUE = "purge-queue"
    HEALTH = "health"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The limits of one operation at one endpoint; `concurrent` None is no limit."""

    per_10_s: int
    concurrent: int | None = None


LIMITS: Final[Mapping[Operation, Limit]] = {
    Operation.RUN: Limit(per_10_s=1000, concurrent=200),
    Operation.RUNSYNC: Limit(per_10_s=2000, concurrent=400),
    Operation.STATUS: Limit(per_10_s=2000, concurrent=400),
    Operation.STATUS_SYNC: Limit(per_10_s=2000, concurrent=400),
    Operation.STREAM: Limit(per_10_s=2000, concurrent=400),
    Operation.CANCEL: Limit(per_10_s=100, concurrent=20),
    Operation.PURGE_QUEUE: Limit(per_10_s=2),
    Operation.REQUESTS: Limit(per_10_s=10, concurrent=2),
}
"""Limits from RunPod's documentation, "send-requests"; operations not listed have no limit.

The platform raises them with the number of running workers, by a factor it does not publish.
"""


class RateLimited(Exception):
    """More requests than the platform accepts; after `retry_after_s` another one may pass."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Usage:
    """The usage of one operation at one endpoint.

    `leave_at` has the times at which counted requests leave the window, `running` is the number of
    those that are being answered.
    """

    leave_at: deque[float] = field(default_factory=deque)
    running: int = 0


class RateLimiter:
    """Counts requests in an exact sliding window, for each endpoint and operation alone.

    `clock` never goes back, like `time.monotonic`. Refused requests are not counted. Usage is
    kept for every endpoint seen: admit requests for known endpoints only.
    """

    def __init__(
        self, clock: Callable[[], float], *, is_on: bool = True, limits_queue: bool = True
    ) -> None:
        self._clock = clock
        self._is_on = is_on
        self._limits_queue = limits_queue
        self._usage: defaultdict[tuple[str, Operation], _Usage] = defaultdict(_Usage)

    @contextmanager
    def admit(self, endpoint_id: str, operation: Operation) -> Iterator[None]:
        """Count one request while it is answered. Raises `RateLimited` on entering."""
        limit = LIMITS.get(operation) if self._is_on else None
        if limit is None:
            yield
            return
        usage = self._usage[endpoint_id, operation]
        self._count(usage, operation, limit)
        try:
            yield
        finally:
            usage.running -= 1

    def check_queue(
        self, operation: Operation, endpoint: EndpointSettings, num_queued: int
    ) -> None:
        """Raise `RateLimited` for a full queue. Only older documentation has this limit."""
        most = max(QUEUE_FREE_JOBS, QUEUE_JOBS_PER_WORKER * endpoint.workers_max)
        if self._is_on and self._limits_queue and num_queued > most:
            raise RateLimited(
                f"{operation}: at most {most} queued jobs for one endpoint, {num_queued} are "
                "queued; --no-rate-limits or --behaviour queue_limit=false lifts this limit",
                BUSY_RETRY_S,
            )

    def _count(self, usage: _Usage, operation: Operation, limit: Limit) -> None:
        now = self._clock()
        while usage.leave_at and usage.leave_at[0] <= now:
            usage.leave_at.popleft()
        if len(usage.leave_at) >= limit.per_10_s:
            allowed = f"{limit.per_10_s} requests in {WINDOW_S:.0f} s"
            raise RateLimited(_refusal(operation, allowed), usage.leave_at[0] - now)
        if limit.concurrent is not None and usage.running >= limit.concurrent:
            allowed = f"{limit.concurrent} requests at once"
            raise RateLimited(_refusal(operation, allowed), BUSY_RETRY_S)
        usage.leave_at.append(now + WINDOW_S)
        usage.running += 1


def _refusal(operation: Operation, limit: str) -> str:
    return f"{operation}: at most {limit} for one endpoint; --no-rate-limits lifts this limit"
