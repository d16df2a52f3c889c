"""JSON of the platform's API, in both directions, as clients and workers expect it.

Inputs and outputs pass through as JSON text: they are parsed only to be checked.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runpod_emulator.api.api_error import ApiError
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs.job import Job, JobStatus, Policy
from runpod_emulator.settings import EndpointSettings

MOST_MS = 10**15
"""Largest time in milliseconds, more than anybody waits and small enough for seconds as float."""

PRESTART_FAILED = "prestart_failed"
"""The SDK's `rp_prestart.PRESTART_FAILED_EVENT`."""
TOO_DEEP = "expected JSON of fewer levels, got more than can be read"


class PolicyFields(BaseModel):
    """The `policy` of a request. Times are milliseconds."""

    model_config = ConfigDict(extra="ignore", strict=True)

    executionTimeout: int | None = Field(
        default=None, le=MOST_MS, description="from each take; least 5000"
    )
    ttl: int | None = Field(default=None, le=MOST_MS, description="from submission; least 10000")
    lowPriority: bool = Field(default=False, description="does not make the endpoint scale")


class RunRequest(BaseModel):
    """The body of `/run` and `/runsync`. Unknown keys are ignored, as on the platform."""

    model_config = ConfigDict(extra="ignore", strict=True)

    input: Any = Field(description="handed to the handler as it is")
    webhook: str | None = Field(default=None, description="posted to when the job has ended")
    policy: PolicyFields | None = None
    s3Config: dict[str, Any] | None = Field(
        default=None, description="accessId, accessSecret, bucketName, endpointUrl"
    )


class ResultKind(StrEnum):
    """The meaning of a post to job-done."""

    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedResult:
    """A worker's parsed post to job-done. `output` is JSON text, None if there is none."""

    kind: ResultKind
    body: Mapping[str, Any]
    output: bytes | None
    error: str | None
    must_replace_worker: bool
    has_failed_prestart: bool
    has_nan: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedChunk:
    """An item that a generator yielded, in the worker's form: `{"output": ...}`."""

    body: dict[str, Any]
    has_nan: bool


def to_json(value: object) -> bytes:
    """Render compact JSON in ASCII, which alone can encode half a surrogate pair, legal in JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def parse_run(raw: bytes) -> RunRequest:
    """Parse the body of `/run`. Raises `ApiError` 400 with every field that is wrong."""
    try:
        body = json.loads(raw, parse_constant=_refuse_nan, parse_float=_finite)
        return RunRequest.model_validate(body)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors()
        )
        raise ApiError(400, problems) from error
    except ValueError as error:
        raise ApiError(400, "body: expected a JSON object with the key input") from error
    except RecursionError as error:
        raise ApiError(400, f"body: {TOO_DEEP}") from error


def policy_of(
    requested: PolicyFields | None, endpoint: EndpointSettings, behaviour: Behaviour
) -> Policy:
    """Return a job's policy. Raises `ApiError` 400 for a time outside the platform's limits."""
    requested = requested or PolicyFields()
    limits = (
        ("executionTimeout", requested.executionTimeout, behaviour.min_execution_timeout_s),
        ("ttl", requested.ttl, behaviour.min_ttl_s),
    )
    longest_s = behaviour.max_policy_s
    for name, given_ms, least_s in limits:
        if given_ms is None:
            continue
        is_too_long = behaviour.enforce_max_policy and given_ms > longest_s * 1000
        if given_ms < least_s * 1000 or is_too_long:
            expected = f"{least_s * 1000:.0f} to {longest_s * 1000:.0f} ms"
            raise ApiError(400, f"policy.{name}: expected {expected}, got {given_ms}")
    return Policy(
        execution_timeout_s=_seconds(requested.executionTimeout, endpoint.execution_timeout_s),
        ttl_s=_seconds(requested.ttl, endpoint.ttl_s),
        is_low_priority=requested.lowPriority,
    )


def parse_result(raw: bytes) -> PostedResult:
    """Parse a result. NaN and infinities become null.

    Raises `ApiError` 400 unless it is a JSON object.
    """
    body, has_nan = _posted(raw, "job-done")
    error_text = body.get("error")
    is_error = isinstance(error_text, str) and bool(error_text)
    is_progress = body.get("status") == JobStatus.IN_PROGRESS and not is_error
    kind = ResultKind.FAILED if is_error else ResultKind.COMPLETED
    # the platform reports an object under `error` as COMPLETED without output (#299)
    has_output = "output" in body and ("error" not in body or is_error)
    return PostedResult(
        kind=ResultKind.PROGRESS if is_progress else kind,
        body=body,
        output=to_json(body["output"]) if has_output else None,
        error=error_text if is_error else None,
        must_replace_worker=body.get("stopPod") is True,
        has_failed_prestart=isinstance(error_text, str) and _is_prestart_failure(error_text),
        has_nan=has_nan,
    )


def _is_prestart_failure(error: str) -> bool:
    """Return whether a job failed because a prestart hook of its worker did (SDK 2.0)."""
    try:
        cause = json.loads(error)
    except (ValueError, RecursionError):
        return False
    return isinstance(cause, dict) and cause.get("event") == PRESTART_FAILED


def parse_chunk(raw: bytes) -> PostedChunk:
    """Parse an item. NaN and infinities become null.

    Raises `ApiError` 400 unless it is a JSON object.
    """
    body, has_nan = _posted(raw, "job-stream")
    return PostedChunk(body=body, has_nan=has_nan)


def split_chunk(chunk: dict[str, Any], max_bytes: int) -> list[bytes]:
    """Split a long text into pieces of at most `max_bytes`; anything else is one piece."""
    output = chunk.get("output")
    whole = to_json(chunk)
    if len(whole) <= max_bytes or not isinstance(output, str):
        return [whole]
    # JSON escapes a character outside the basic plane as two groups of six
    step = max(1, (max_bytes - 100) // 12)
    pieces = (output[at : at + step] for at in range(0, len(output), step))
    return [to_json({**chunk, "output": piece}) for piece in pieces]


def job_for_worker(job: Job, payload: bytes | None) -> bytes:
    """Return the answer of job-take. The SDK drops a job without `payload`: it has no `input`."""
    extras: dict[str, object] = {}
    if job.webhook is not None:
        extras["webhook"] = job.webhook.url
    s3_config = None if job.s3_config is None else job.s3_config.encode()
    return _object({"id": job.id, **extras}, input=payload, s3Config=s3_config)


def acknowledgement(job: Job) -> bytes:
    """Return the answer of `/run`, `/cancel` and `/retry`."""
    return to_json({"id": job.id, "status": job.status})


def status_object(job: Job, output: bytes | None) -> bytes:
    """Return the answer of `/status`, `/status-sync` and `/runsync`."""
    return _object(_status_fields(job), output=output)


def stream_object(job: Job, chunks: list[bytes]) -> bytes:
    return _object(_status_fields(job), stream=b"[" + b",".join(chunks) + b"]")


def webhook_object(job: Job, payload: bytes | None, output: bytes | None) -> bytes:
    """Return the status object with the job's input and the webhook's own address (#409)."""
    url = job.webhook.url if job.webhook is not None else None
    return _object({**_status_fields(job), "webhook": url}, input=payload, output=output)


def _status_fields(job: Job) -> dict[str, object]:
    fields: dict[str, object] = {"id": job.id, "status": job.status}
    if job.status is not JobStatus.IN_QUEUE:
        fields["delayTime"] = job.delay_ms
    if job.status.is_final:
        fields["executionTime"] = job.execution_ms or 0
    if job.worker_id is not None:
        fields["workerId"] = job.worker_id
    if job.error is not None:
        fields["error"] = job.error
    if job.retries:
        fields["retries"] = job.retries
    return fields


def _object(fields: Mapping[str, object], **texts: bytes | None) -> bytes:
    """Render a JSON object of plain fields and of members that are JSON text already."""
    members = [to_json(fields)[1:-1]]
    members += [b'"' + name.encode() + b'":' + text for name, text in texts.items() if text]
    return b"{" + b",".join(members) + b"}"


def _seconds(given_ms: int | None, default_s: float) -> float:
    return default_s if given_ms is None else given_ms / 1000


def _posted(raw: bytes, route: str) -> tuple[dict[str, Any], bool]:
    """Return a worker's body, and whether it had NaN or an infinity, which JSON does not have."""
    replaced: list[str] = []

    def number(digits: str) -> float | None:
        value = float(digits)
        if math.isfinite(value):
            return value
        replaced.append(digits)
        return None

    try:
        body = json.loads(raw, parse_constant=replaced.append, parse_float=number)
    except ValueError as error:
        raise ApiError(400, f"{route}: expected a JSON object") from error
    except RecursionError as error:
        raise ApiError(400, f"{route}: {TOO_DEEP}") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"{route}: expected a JSON object, got {type(body).__name__}")
    return body, bool(replaced)


def _finite(digits: str) -> float:
    """Return a number. Raises ValueError for one like 1e999, which would become Infinity."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is too large")
    return number


def _refuse_nan(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
