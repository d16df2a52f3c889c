"""The API's documents about endpoints, as they are sent and read.

Written from the published description of RunPod's REST API v2. A field is named by its place in
the document, e.g. `workers.max`.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pixpod_tools.deploy.configuration import FlashBoot, Scaler
from pixpod_tools.deploy.endpoint import EndpointSpec

Document = dict[str, Any]
Fields = Mapping[str, Any]
"""Values by place, leaves only: `env.NAME`, `gpu.pools`, `workers.max`."""

ENV = "env."
DEFAULT_IDLE_TIMEOUT_S = 5
"""The console's default; the API's own is 10."""

_FLASHBOOT: Mapping[FlashBoot, str] = {
    FlashBoot.OFF: "OFF",
    FlashBoot.ON: "FLASHBOOT",
    FlashBoot.PRIORITY: "PRIORITY_FLASHBOOT",
}


class RequestUrls(BaseModel):
    """Addresses of a queue-based endpoint; other endpoints have none of them."""

    run: str = ""
    run_sync: str = Field("", alias="runSync")
    status: str = ""
    health: str = ""


class Endpoint(BaseModel):
    """An endpoint as the platform describes it; fields that are not listed here are ignored."""

    id: str
    name: str
    type: str | None = None
    request_urls: RequestUrls | None = Field(None, alias="requestUrls")
    image: str | None = None
    disk: int | None = None
    env: dict[str, str] = Field(default_factory=dict)
    registry: str | None = None
    gpu: dict[str, Any] | None = None
    cpu: list[dict[str, Any]] | None = None
    workers: dict[str, Any]
    scaling: dict[str, Any]
    data_center_ids: list[str] = Field(alias="dataCenterIds")
    network_volumes: list[str] = Field(alias="networkVolumes")
    timeout: int
    flashboot: str


class _Listing(BaseModel):
    endpoints: list[Endpoint]


_ENDPOINT = TypeAdapter(Endpoint)
_LISTING = TypeAdapter(_Listing)


class UnreadableAnswer(ValueError):
    """The answer differs from the description of the API; the message names the place."""


def parse_endpoint(document: object) -> Endpoint:
    """Parse an endpoint. Raises UnreadableAnswer."""
    try:
        return _ENDPOINT.validate_python(document)
    except ValidationError as error:
        raise UnreadableAnswer(_first(error)) from None


def parse_listing(document: object) -> list[Endpoint]:
    """Parse a list of endpoints. Raises UnreadableAnswer."""
    try:
        return _LISTING.validate_python(document).endpoints
    except ValidationError as error:
        raise UnreadableAnswer(_first(error)) from None


def _first(error: ValidationError) -> str:
    """Describe the first error without its value, which may be that of a variable."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def fields_of(spec: EndpointSpec) -> Fields:
    """Return all fields of a wanted endpoint. None or an empty list stands for a field not set."""
    wanted = spec.configuration
    fields: dict[str, Any] = {
        "image": wanted.image,
        "disk": spec.container_disk_gb,
        "registry": wanted.registry_auth_id,
    }
    if spec.pools:
        fields |= {
            "gpu.pools": [pool.id for pool in spec.pools],
            "gpu.excludedTypes": list(wanted.exclude_gpus),
            "gpu.count": 1,
            "gpu.minCudaVersion": wanted.min_cuda,
            "gpu.allowedCudaVersions": [],
        }
    else:
        fields["cpu"] = [{"id": spec.cpu, "vcpuCount": wanted.vcpus}]
    fields |= {"workers.min": wanted.min_workers, "workers.max": wanted.max_workers}
    if wanted.scaler is Scaler.REQUEST_COUNT:
        fields["scaling.type"] = "REQUEST_COUNT"
        fields["scaling.requestCount"] = int(wanted.scaler_value)
    else:
        fields["workers.idleTimeout"] = wanted.idle_timeout_s or DEFAULT_IDLE_TIMEOUT_S
        fields["scaling.type"] = "QUEUE_DELAY"
        fields["scaling.queueDelay"] = wanted.scaler_value
    return fields | {
        "timeout": wanted.execution_timeout_s * 1_000,
        "flashboot": _FLASHBOOT[wanted.flashboot],
        "dataCenterIds": list(wanted.data_centers),
        "networkVolumes": [wanted.network_volume_id] if wanted.network_volume_id else [],
        **{f"{ENV}{name}": value for name, value in spec.env.items()},
    }


def fields_there(endpoint: Endpoint) -> Fields:
    """Return the fields at the same places as in `fields_of`, as the platform has them."""
    gpu = endpoint.gpu or {}
    cpu = [
        {"id": each.get("id"), "vcpuCount": each.get("vcpuCount")} for each in endpoint.cpu or ()
    ]
    return {
        "image": endpoint.image,
        "disk": endpoint.disk,
        "registry": endpoint.registry,
        "gpu.pools": gpu.get("pools"),
        "gpu.excludedTypes": gpu.get("excludedTypes") or [],
        "gpu.count": gpu.get("count", 1),
        "gpu.minCudaVersion": gpu.get("minCudaVersion"),
        "gpu.allowedCudaVersions": gpu.get("allowedCudaVersions") or [],
        "cpu": cpu,
        **{f"workers.{name}": value for name, value in endpoint.workers.items()},
        **{f"scaling.{name}": value for name, value in endpoint.scaling.items()},
        "timeout": endpoint.timeout,
        "flashboot": endpoint.flashboot,
        "dataCenterIds": endpoint.data_center_ids,
        "networkVolumes": endpoint.network_volumes,
        **{f"{ENV}{name}": value for name, value in endpoint.env.items()},
    }


def creation(spec: EndpointSpec) -> Document:
    """Return the body of a POST, without fields that are not set."""
    set_fields = {
        place: value
        for place, value in fields_of(spec).items()
        if value is not None and value != []
    }
    return {"name": spec.configuration.name, "type": "QUEUE", **_nested(set_fields)}


def update(spec: EndpointSpec, changed: set[str]) -> Document:
    """Return the body of a PATCH that changes these places, and as little else as the API allows.

    An object that is replaced as a whole is sent as a whole: `env`, `scaling`, and, as the
    description leaves that open, `workers`. `gpu` is documented to be merged, but pools and
    excluded types replace each other.
    """
    wanted = fields_of(spec)
    sent = set(changed)
    for group in (ENV, "scaling.", "workers."):
        if any(place.startswith(group) for place in changed):
            sent |= {place for place in wanted if place.startswith(group)}
    if changed & {"gpu.pools", "gpu.excludedTypes"}:
        sent |= {"gpu.pools", "gpu.excludedTypes"}
    document = _nested({place: value for place, value in wanted.items() if place in sent})
    if any(place.startswith(ENV) for place in changed):
        document.setdefault("env", {})
    return document


def _nested(fields: Fields) -> Document:
    document: Document = {}
    for place, value in fields.items():
        group, dot, name = place.partition(".")
        if dot:
            document.setdefault(group, {})[name] = value
        else:
            document[group] = value
    return document


def is_reference(value: object) -> bool:
    """Return whether a variable's value is a reference to one of the platform's secrets."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"\{\{\s*RUNPOD_SECRET_\S+\s*\}\}", value) is not None
    )
