"""Plans the changes that make an endpoint as wanted; sends nothing."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pixpod_tools.deploy import documents
from pixpod_tools.deploy.documents import ENV, Document, Endpoint
from pixpod_tools.deploy.endpoint import EndpointSpec
from pixpod_tools.deploy.errors import EndpointConflict

_UNORDERED = {
    "gpu.pools",
    "gpu.excludedTypes",
    "gpu.allowedCudaVersions",
    "dataCenterIds",
    "networkVolumes",
}
"""Lists whose order, by the API's description, is neither kept nor of importance."""


class Action(StrEnum):
    """The action that the platform has to take."""

    CREATE = "create"
    UPDATE = "update"
    NOTHING = "no change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One place in the endpoint's document; None is not set."""

    place: str
    old: object
    new: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned change. `body` is the document to send, empty for no change; `endpoint` is the
    present endpoint.
    """

    action: Action
    changes: tuple[Change, ...]
    body: Document
    endpoint: Endpoint | None


def make_plan(spec: EndpointSpec, endpoints: Sequence[Endpoint]) -> Plan:
    """Plan the change from all endpoints of the account. Raises EndpointConflict."""
    endpoint = _find(spec, endpoints)
    if endpoint is None:
        fields = documents.fields_of(spec).items()
        changes = tuple(
            Change(place=place, old=None, new=value)
            for place, value in fields
            if value is not None and value != []
        )
        body = documents.creation(spec)
        return Plan(action=Action.CREATE, changes=changes, body=body, endpoint=None)
    changes = differences(spec, endpoint)
    return Plan(
        action=Action.UPDATE if changes else Action.NOTHING,
        changes=changes,
        body=documents.update(spec, {change.place for change in changes}) if changes else {},
        endpoint=endpoint,
    )


def differences(spec: EndpointSpec, endpoint: Endpoint) -> tuple[Change, ...]:
    """Return the differences from the wanted endpoint, including variables that only the present
    endpoint has.
    """
    wanted, there = documents.fields_of(spec), documents.fields_there(endpoint)
    surplus = [place for place in there if place.startswith(ENV) and place not in wanted]
    return tuple(
        Change(place=place, old=there.get(place), new=wanted.get(place))
        for place in (*wanted, *surplus)
        if not _are_same(place, there.get(place), wanted.get(place))
    )


def _find(spec: EndpointSpec, endpoints: Sequence[Endpoint]) -> Endpoint | None:
    name = spec.configuration.name
    found = [endpoint for endpoint in endpoints if endpoint.name == name]
    if len(found) > 1:
        ids = ", ".join(endpoint.id for endpoint in found)
        raise EndpointConflict(
            f"{len(found)} endpoints are named {name!r} ({ids}): "
            "rename or delete all but one in the console"
        )
    if not found:
        return None
    endpoint = found[0]
    if endpoint.type not in (None, "QUEUE"):
        raise EndpointConflict(
            f"endpoint {name!r} ({endpoint.id}) is of type {endpoint.type}, which cannot be "
            "changed: choose another name or delete it in the console"
        )
    wants_gpu = bool(spec.pools)
    if (endpoint.gpu is not None) != wants_gpu:
        kinds = ("CPU", "GPU") if wants_gpu else ("GPU", "CPU")
        raise EndpointConflict(
            f"endpoint {name!r} ({endpoint.id}) runs on {kinds[0]}, which cannot be changed "
            f"to {kinds[1]}: choose another name or delete it in the console"
        )
    return endpoint


def _are_same(place: str, old: object, new: object) -> bool:
    if place in _UNORDERED and isinstance(old, list) and isinstance(new, list):
        return sorted(old) == sorted(new)
    if isinstance(old, float) and isinstance(new, float | int):
        # the API holds seconds as 32-bit floats
        return math.isclose(old, new, rel_tol=1e-6)
    if documents.is_reference(old) and documents.is_reference(new):
        return re.sub(r"\s", "", str(old)) == re.sub(r"\s", "", str(new))
    return old == new
