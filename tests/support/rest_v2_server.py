"""RunPod's REST API v2 on the loopback interface, as far as serverless endpoints go.

Requests are checked by schemas of our own, written from the published description: what it does
not know is refused, as there. State is kept, answers have the documented shape.
"""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jsonschema import Draft202012Validator

API_KEY = "rpa_0123456789SECRETKEY"
PATH = "/v2/serverless"

POOLS = {
    "AMPERE_16": ["NVIDIA RTX A4000", "NVIDIA RTX A4500"],
    "AMPERE_24": ["NVIDIA RTX A5000", "NVIDIA L4", "NVIDIA GeForce RTX 3090"],
    "ADA_24": ["NVIDIA GeForce RTX 4090"],
    "ADA_32_PRO": ["NVIDIA GeForce RTX 5090"],
    "AMPERE_48": ["NVIDIA A40", "NVIDIA RTX A6000"],
    "ADA_48_PRO": ["NVIDIA L40", "NVIDIA L40S", "NVIDIA RTX 6000 Ada Generation"],
    "AMPERE_80": ["NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"],
    "ADA_80_PRO": ["NVIDIA H100 80GB HBM3"],
    "BLACKWELL_96": ["NVIDIA RTX PRO 6000 Blackwell Server Edition"],
    "HOPPER_141": ["NVIDIA H200"],
    "BLACKWELL_180": ["NVIDIA B200"],
}


def closed(properties: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **rest}


TEXTS = {"type": "array", "items": {"type": "string"}}
VERSION = r"^\d+\.\d+$"
QUEUE_DELAY = closed(
    {"type": {"const": "QUEUE_DELAY"}, "queueDelay": {"type": "number", "minimum": 0.5}},
    required=["type", "queueDelay"],
)
REQUEST_COUNT = closed(
    {"type": {"const": "REQUEST_COUNT"}, "requestCount": {"type": "integer", "minimum": 1}},
    required=["type", "requestCount"],
)
GPU_FIELDS = {
    "pools": {**TEXTS, "minItems": 1},
    "excludedTypes": {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string", "pattern": r"^\s*[^-\s]"},
    },
    "count": {"type": "integer", "minimum": 1},
    "allowedCudaVersions": {"type": "array", "items": {"type": "string", "pattern": VERSION}},
}
SHARED_FIELDS = {
    "args": {"type": "string"},
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "image": {"type": "string"},
    "ports": TEXTS,
    "registry": {"type": ["string", "null"]},
    "name": {"type": "string", "minLength": 1},
    "scaling": {"oneOf": [QUEUE_DELAY, REQUEST_COUNT]},
    "cpu": {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": closed(
            {
                "id": {"type": "string", "minLength": 1},
                "vcpuCount": {"type": "integer", "minimum": 2},
            },
            required=["id", "vcpuCount"],
        ),
    },
    "dataCenterIds": TEXTS,
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "networkVolumes": TEXTS,
    "templateId": {"type": "string"},
    "timeout": {"type": "integer"},
    "workers": closed(
        {
            "min": {"type": "integer", "minimum": 0},
            "max": {"type": "integer", "minimum": 0},
            "idleTimeout": {"type": "integer", "minimum": 1, "maximum": 3600},
        }
    ),
}
CREATE = closed(
    {
        **SHARED_FIELDS,
        "type": {"enum": ["QUEUE", "LOAD_BALANCER"]},
        "gpu": closed(
            {**GPU_FIELDS, "minCudaVersion": {"type": "string", "pattern": VERSION}},
            required=["pools"],
        ),
    },
    required=["name", "type", "scaling", "image"],
)
UPDATE = closed(
    {
        **SHARED_FIELDS,
        "gpu": closed(
            {**GPU_FIELDS, "minCudaVersion": {"type": "string", "pattern": rf"^$|{VERSION}"}},
            dependentRequired={"excludedTypes": ["pools"]},
        ),
    }
)
CHECKS = {"POST": Draft202012Validator(CREATE), "PATCH": Draft202012Validator(UPDATE)}


class Refused(Exception):
    """The server's answer to a request that it does not carry out."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.problem: dict[str, Any] = {"title": "Refused", "status": status, "detail": detail}
        if errors:
            self.problem["errors"] = errors


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The answer to the next request in place of its own; a `delay_s` comes before it."""

    status: int
    body: bytes = b'{"title": "Fault", "status": 500, "detail": "ordered by the test"}'
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0


@dataclass(kw_only=True)
class RestV2:
    """The account: its endpoints, all requests so far, and faults still to come."""

    url: str = ""
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def writes(self) -> list[tuple[str, str, Any]]:
        return [request for request in self.requests if request[0] != "GET"]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Raises Refused."""
        if path == PATH and method == "GET":
            return 200, {"endpoints": list(self.endpoints.values())}
        if path == PATH and method == "POST":
            return 201, self.create(body)
        found = self.endpoints.get(path.removeprefix(f"{PATH}/"))
        if found is None:
            raise Refused(404, "resource not found")
        if method == "PATCH":
            self.update(found, body)
        return 200, found

    def create(self, body: Any) -> dict[str, Any]:
        check("POST", body)
        if ("gpu" in body) == ("cpu" in body):
            raise Refused(400, "exactly one of gpu and cpu is required")
        number = f"ep{len(self.endpoints) + 1}"
        base = f"https://api.runpod.ai/v2/{number}"
        endpoint: dict[str, Any] = {
            "id": number,
            "createdAt": "2026-11-20T12:00:00Z",
            "requestUrls": {
                "run": f"{base}/run",
                "runSync": f"{base}/runsync",
                "status": f"{base}/status/{{job_id}}",
                "stream": f"{base}/stream/{{job_id}}",
                "cancel": f"{base}/cancel/{{job_id}}",
                "retry": f"{base}/retry/{{job_id}}",
                "purgeQueue": f"{base}/purge-queue",
                "health": f"{base}/health",
            },
            "args": "",
            "disk": 20,
            "ports": [],
            "env": {},
            "registry": None,
            "workers": {"min": 0, "max": 3, "idleTimeout": 10},
            "dataCenterIds": [],
            "networkVolumes": [],
            "timeout": 300_000,
            "flashboot": "OFF",
        }
        if "gpu" in body:
            endpoint["gpu"] = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None}
        merge(endpoint, body)
        self.endpoints[number] = endpoint
        return endpoint

    def update(self, endpoint: dict[str, Any], body: Any) -> None:
        check("PATCH", body)
        if ("cpu" in body and "gpu" in endpoint) or ("gpu" in body and "cpu" in endpoint):
            raise Refused(400, "the compute family cannot be changed")
        changed = copy.deepcopy(endpoint)
        merge(changed, body)
        endpoint.clear()
        endpoint.update(changed)


def check(method: str, body: Any) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in CHECKS[method].iter_errors(body)]
    if errors:
        raise Refused(422, "Request validation failed.", errors)


def merge(endpoint: dict[str, Any], body: dict[str, Any]) -> None:
    """Only what is in the body changes; `gpu` and `workers` are merged, the rest is replaced."""
    gpu = dict(body.get("gpu", {}))
    if "pools" in gpu:
        gpu.setdefault("excludedTypes", [])
    if gpu.get("minCudaVersion") == "":
        gpu["minCudaVersion"] = None
    rest = {name: value for name, value in body.items() if name not in ("gpu", "workers")}
    endpoint.update(copy.deepcopy(rest))
    if gpu:
        endpoint["gpu"].update(gpu)
        check_gpu(endpoint["gpu"])
    endpoint["workers"].update(body.get("workers", {}))
    if "cpu" in body:
        endpoint["cpu"] = [{**each, "memory": 2 * each["vcpuCount"]} for each in body["cpu"]]
    if endpoint["type"] == "QUEUE" and endpoint["scaling"]["type"] == "REQUEST_COUNT":
        if "idleTimeout" in body.get("workers", {}):
            raise Refused(400, "idleTimeout does not apply to this scaler")
        endpoint["workers"].pop("idleTimeout", None)


def check_gpu(gpu: dict[str, Any]) -> None:
    unknown = [pool for pool in gpu["pools"] if pool not in POOLS]
    if unknown:
        raise Refused(400, f"unknown pool {unknown[0]}")
    types = {card for pool in gpu["pools"] for card in POOLS[pool]}
    if not set(gpu["excludedTypes"]) < types:
        raise Refused(400, "excludedTypes: not in these pools, or nothing is left")
    if gpu["allowedCudaVersions"] and gpu["minCudaVersion"]:
        raise Refused(400, "allowedCudaVersions and minCudaVersion exclude each other")


class _Handler(BaseHTTPRequestHandler):
    """One request; the account is the server's."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.handle_call()

    def do_POST(self) -> None:
        self.handle_call()

    def do_PATCH(self) -> None:
        self.handle_call()

    def handle_call(self) -> None:
        account: RestV2 = self.server.account  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        account.requests.append((self.command, self.path, copy.deepcopy(body)))
        if account.faults:
            fault = account.faults.pop(0)
            account.ended.wait(fault.delay_s)
            self.reply(fault.status, fault.body, fault.headers)
            return
        try:
            if self.headers.get("Authorization") != f"Bearer {API_KEY}":
                raise Refused(401, "missing or invalid bearer token")
            status, document = account.answer(self.command, self.path, body)
        except Refused as refused:
            status, document = refused.status, refused.problem
        self.reply(status, json.dumps(document).encode(), {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at `RestV2.requests`."""


@contextmanager
def running_rest_v2() -> Iterator[RestV2]:
    """An empty account behind API_KEY."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    account = RestV2(url=f"http://127.0.0.1:{server.server_port}")
    server.account = account  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield account
    finally:
        account.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
