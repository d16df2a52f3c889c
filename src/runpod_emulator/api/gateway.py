"""The state that all routes of one emulator share: endpoints, rules and records."""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.limits import RateLimiter
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.faults import FaultPlan
from runpod_emulator.hazards import HazardLog
from runpod_emulator.jobs.queue import JobQueue
from runpod_emulator.jobs.store import JobStore
from runpod_emulator.settings import EndpointSettings
from runpod_emulator.workers.billing import Prices
from runpod_emulator.workers.fleet import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint with its jobs and its workers."""

    settings: EndpointSettings
    queue: JobQueue
    fleet: Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The shared state of all routes. `api_key` opens the client API and all under `/emulator`.

    Once `draining` is set no further job is accepted.
    """

    endpoints: Mapping[str, Endpoint]
    store: JobStore
    behaviour: Behaviour
    limiter: RateLimiter
    faults: FaultPlan
    hazards: HazardLog
    prices: Prices
    clock: Callable[[], float]
    started_at: float
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    api_key: str = field(repr=False)

    def endpoint_of(self, request: web.Request) -> Endpoint:
        """Return the endpoint of a request. Raises `ApiError` 404 for an unknown one."""
        endpoint = self.endpoints.get(request.match_info["endpoint"])
        if endpoint is None:
            raise ApiError(404, "endpoint not found")
        return endpoint

    def clear_faults(self) -> None:
        """Remove all rules and end a shortage of GPUs."""
        self.faults.clear()
        for endpoint in self.endpoints.values():
            endpoint.fleet.is_short_of_gpus = False

    def check_key(self, request: web.Request) -> None:
        """Raise `ApiError` 401 for a request without the API key."""
        given = key_in(request)
        if not given:
            raise ApiError(401, "no token provided")
        if not hmac.compare_digest(given, self.api_key.encode()):
            raise ApiError(401, "invalid token")


def key_in(request: web.Request) -> bytes:
    """Return the key that a request carries, bare or as `Bearer KEY`; empty if there is none."""
    header = request.headers.get("Authorization", "").strip()
    scheme, _, key = header.partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else header
    # bytes that are no UTF-8 arrive as half surrogate pairs
    return given.encode(errors="replace")
