"""The client API as an OpenAPI 3.1 document."""

from typing import Any

from runpod_emulator.api.wire import RunRequest
from runpod_emulator.jobs.job import JobStatus

JSON = "application/json"

STATUS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string"},
        "status": {"enum": [status.value for status in JobStatus]},
        "delayTime": {"type": "integer", "description": "milliseconds in the queue"},
        "executionTime": {"type": "integer", "description": "milliseconds on the worker"},
        "workerId": {"type": "string"},
        "retries": {"type": "integer", "description": "requeues after a lost worker"},
        "output": {"description": "what the handler returned, or its last progress"},
        "error": {"type": "string"},
    },
}
ACKNOWLEDGEMENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {name: STATUS_SCHEMA["properties"][name] for name in ("id", "status")},
}
STREAM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["id", "status", "stream"],
    "properties": {
        **STATUS_SCHEMA["properties"],
        "stream": {
            "type": "array",
            "items": {"type": "object", "properties": {"output": {}}},
        },
    },
}
HEALTH_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "jobs": {"type": "object", "additionalProperties": {"type": "integer"}},
        "workers": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}

WAIT = {"name": "wait", "description": "milliseconds to wait for the end of the job"}
TTL = {"name": "ttl", "description": "milliseconds from submission after which it is deleted"}

OPERATIONS: tuple[tuple[str, tuple[str, ...], str, dict[str, Any] | None, tuple[Any, ...]], ...] = (
    ("/run", ("post",), "Submit a job", ACKNOWLEDGEMENT_SCHEMA, ()),
    ("/runsync", ("post",), "Submit a job and wait for it", STATUS_SCHEMA, (WAIT,)),
    ("/status/{job}", ("get", "post"), "A job's status and output", STATUS_SCHEMA, (TTL,)),
    ("/status-sync/{job}", ("get", "post"), "Wait for a job", STATUS_SCHEMA, (WAIT,)),
    ("/stream/{job}", ("get", "post"), "Items since the last call", STREAM_SCHEMA, (WAIT,)),
    ("/cancel/{job}", ("post",), "End a job", ACKNOWLEDGEMENT_SCHEMA, ()),
    ("/retry/{job}", ("post",), "Run a failed job again", ACKNOWLEDGEMENT_SCHEMA, ()),
    ("/purge-queue", ("post",), "Empty the queue", None, ()),
    ("/health", ("get",), "Counts of jobs and workers", HEALTH_SCHEMA, ()),
    ("/requests", ("get",), "The jobs submitted last", None, ()),
    ("/metrics", ("get",), "Ready workers", None, ()),
)
"""Operations: path below `/v2/{endpoint}`, methods, summary, answer's schema, query parameters."""


def document() -> dict[str, Any]:
    paths = {
        f"/v2/{{endpoint}}{path}": {
            method: _operation(path, method, summary, schema, query) for method in methods
        }
        for path, methods, summary, schema, query in OPERATIONS
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "RunPod Serverless, emulated", "version": "2"},
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
            "schemas": _run_request(),
        },
    }


def _operation(
    path: str, method: str, summary: str, schema: dict[str, Any] | None, query: tuple[Any, ...]
) -> dict[str, Any]:
    name = path.split("/")[1].replace("-", "_")
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in ("endpoint", "job")
        if each == "endpoint" or "{job}" in path
    ]
    parameters += [{**each, "in": "query", "schema": {"type": "integer"}} for each in query]
    operation = {
        "operationId": f"{name}_{method}",
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "done", "content": {JSON: {"schema": schema or {}}}},
            "400": {"description": "a field that is not valid; the error names it"},
            "401": {"description": "no key, or a wrong one"},
            "404": {"description": "no such endpoint or job"},
            "429": {"description": "more requests than the platform accepts"},
        },
    }
    if path in ("/run", "/runsync"):
        body = {"$ref": "#/components/schemas/RunRequest"}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return operation


def _run_request() -> dict[str, Any]:
    schema = RunRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "RunRequest": schema}
