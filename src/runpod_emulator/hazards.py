"""Finds, counts and reports hazards: things that work here but hang, vanish or cost money in
production.

It sees payloads but never repeats them, and it changes nothing about a job.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runpod_emulator.behaviour import Behaviour

logger = logging.getLogger(__name__)


class HazardKind(StrEnum):
    EMPTY_INPUT = "empty-input"
    DOUBLE_WRAPPED_INPUT = "double-wrapped-input"
    LOST_RESULT = "lost-result"
    NO_OUTPUT = "no-output"
    DOUBLE_WRAPPED_OUTPUT = "double-wrapped-output"
    ERROR_NOT_A_STRING = "error-not-a-string"
    NOT_A_NUMBER = "not-a-number"
    OVERSIZE_RESULT = "oversize-result"
    OVERSIZE_CHUNK = "oversize-chunk"
    LATE_RESULT = "late-result"
    LATE_PROGRESS = "late-progress"
    BLOCKED_HANDLER = "blocked-handler"
    ENDLESS_STREAM = "endless-stream"
    RETRY_WITHOUT_S3_CONFIG = "retry-without-s3config"
    KILLED_WORKER = "killed-worker"
    CRASH_LOOP = "crash-loop"
    SLOW_START = "slow-start"


ADVICE = {
    HazardKind.EMPTY_INPUT: (
        "the platform seems to drop an empty `input`: the job never reaches a handler and is "
        "given up as lost; send at least one field"
    ),
    HazardKind.DOUBLE_WRAPPED_INPUT: (
        "`input` holds nothing but another `input`, so the handler finds its fields in "
        "job['input']['input']; send the inner object (the SDK's AsyncioEndpoint.run wraps what "
        "it is given by itself)"
    ),
    HazardKind.LOST_RESULT: (
        "the worker let go of the job without a result, and in production the job hangs until a "
        "timeout; most likely the handler returned what json.dumps refuses (bytes, set, array, "
        "tensor: runpod-python #374) or a generator from a callable that is not a generator "
        "function (#372); return plain JSON values"
    ),
    HazardKind.NO_OUTPUT: (
        "the result has neither `output` nor `error`, and the job is COMPLETED with nothing: the "
        'handler returned {} or an empty error text such as {"error": ""}; return a value or '
        "say what went wrong"
    ),
    HazardKind.DOUBLE_WRAPPED_OUTPUT: (
        'the handler returned {"output": ...}, which the SDK wraps again, so clients read '
        "output.output; return the inner value"
    ),
    HazardKind.ERROR_NOT_A_STRING: (
        "the platform reports a job whose `error` is not a string as COMPLETED without output "
        "(runpod-python #299); return the error as one string"
    ),
    HazardKind.NOT_A_NUMBER: (
        "NaN or Infinity is not JSON: what the platform makes of it is unknown and strict clients "
        "cannot read it; replace it, by null for example, before returning"
    ),
    HazardKind.OVERSIZE_RESULT: (
        "the platform answers 400 to so large a result, which the SDK does not repeat: the job "
        "ends COMPLETED without output or is lost (runpod-python #309); upload the result and "
        "return its address"
    ),
    HazardKind.OVERSIZE_CHUNK: (
        "the platform's limit for one streamed item is 1 MB and larger ones are said to be split; "
        "yield smaller items"
    ),
    HazardKind.LATE_RESULT: (
        "the job had already ended (timed out, cancelled, expired or given to another worker): "
        "the result is thrown away and the platform may answer 404 (runpod-python #56); raise "
        "executionTimeout and ttl above the longest job, and make the handler repeatable"
    ),
    HazardKind.LATE_PROGRESS: (
        "a progress update overtook the result: on the platform the job may then stay "
        "IN_PROGRESS for ever (runpod-python #250); leave time between the last update and the "
        "return, or use an async handler"
    ),
    HazardKind.BLOCKED_HANDLER: (
        "the handler did not react to job-stop: it blocks the worker's event loop, or its SDK is "
        "older than 1.10, so that cancelled and timed-out jobs go on and are paid for until the "
        "worker is killed; use an async handler that awaits, or runs its work in a thread"
    ),
    HazardKind.ENDLESS_STREAM: (
        "the Python SDK's stream() never returns for a cancelled job; give it a deadline of its "
        "own or look at /status between its items"
    ),
    HazardKind.RETRY_WITHOUT_S3_CONFIG: (
        "the emulator deletes a job's s3Config when the job ends, so the retried job runs without "
        "it; to upload its result, submit the job again"
    ),
    HazardKind.KILLED_WORKER: (
        "the platform runs this job once more and then gives it up, together with the jobs that "
        "ran beside it; return an error or raise an exception instead of ending the process, and "
        "keep memory below the worker's limit"
    ),
    HazardKind.CRASH_LOOP: (
        "workers end before they run a job: in production jobs then stay IN_QUEUE without any "
        "error, or fail one by one for a prestart hook, while each start may be paid for "
        "(worker-vllm #29); read the worker's log"
    ),
    HazardKind.SLOW_START: (
        "a worker that takes longer than 7 minutes to its first poll is marked unhealthy; set "
        "RUNPOD_INIT_TIMEOUT (seconds), or load less before runpod.serverless.start"
    ),
}
"""Advice for each kind: the effect in production, the remedy, and the issue where one is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    at: float
    kind: HazardKind
    endpoint_id: str
    job_id: str | None
    worker_id: str | None
    message: str


class HazardLog:
    """Counts every hazard since its creation and keeps the last `keep`."""

    def __init__(self, clock: Callable[[], float], keep: int = 200) -> None:
        self._clock = clock
        self._recent: deque[Hazard] = deque(maxlen=keep)
        self._counts: Counter[HazardKind] = Counter()

    def report(
        self,
        kind: HazardKind,
        *,
        endpoint_id: str,
        job_id: str | None = None,
        worker_id: str | None = None,
        detail: str = "",
    ) -> None:
        """Report a hazard. `detail` precedes the advice: sizes, times, counts; never a payload."""
        message = f"{detail}: {ADVICE[kind]}" if detail else ADVICE[kind]
        hazard = Hazard(
            at=self._clock(),
            kind=kind,
            endpoint_id=endpoint_id,
            job_id=job_id,
            worker_id=worker_id,
            message=message,
        )
        self._recent.append(hazard)
        self._counts[kind] += 1
        about = {"endpoint_id": endpoint_id, "job_id": job_id, "worker_id": worker_id}
        logger.warning("hazard %s: %s", kind, message, extra=about)

    @property
    def recent(self) -> Sequence[Hazard]:
        """Return the kept hazards, the newest first."""
        return tuple(reversed(self._recent))

    @property
    def counts(self) -> Mapping[HazardKind, int]:
        """Return the number of hazards of each kind that was seen."""
        return dict(self._counts)


def hazards_of_input(value: object) -> list[HazardKind]:
    """Return the hazards of `value`, a request's `input`."""
    findings = {
        HazardKind.EMPTY_INPUT: value is None or value == {},
        HazardKind.DOUBLE_WRAPPED_INPUT: _is_wrap(value, "input"),
    }
    return _found(findings)


def hazards_of_result(
    body: Mapping[str, object], size_bytes: int, behaviour: Behaviour, *, has_nan: bool
) -> list[HazardKind]:
    """Return the hazards of `body`, a worker's post to job-done, `size_bytes` long on the wire."""
    findings = {
        HazardKind.OVERSIZE_RESULT: size_bytes > behaviour.max_result_bytes,
        HazardKind.NO_OUTPUT: "output" not in body and "error" not in body,
        HazardKind.DOUBLE_WRAPPED_OUTPUT: _is_wrap(body.get("output"), "output"),
        HazardKind.ERROR_NOT_A_STRING: not isinstance(body.get("error", ""), str),
        HazardKind.NOT_A_NUMBER: has_nan,
    }
    return _found(findings)


def hazards_of_chunk(size_bytes: int, behaviour: Behaviour, *, has_nan: bool) -> list[HazardKind]:
    """Return the hazards of a post to job-stream that was `size_bytes` long on the wire."""
    findings = {
        HazardKind.OVERSIZE_CHUNK: size_bytes > behaviour.max_chunk_bytes,
        HazardKind.NOT_A_NUMBER: has_nan,
    }
    return _found(findings)


def _found(findings: Mapping[HazardKind, bool]) -> list[HazardKind]:
    return [kind for kind, is_found in findings.items() if is_found]


def _is_wrap(value: object, name: str) -> bool:
    return isinstance(value, dict) and value.keys() == {name}
