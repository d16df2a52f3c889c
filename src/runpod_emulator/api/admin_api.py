"""The routes under `/emulator`, which the platform does not have: state, jobs, faults, workers."""

import json

from aiohttp import web

from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.fault_injection import Answer
from runpod_emulator.api.gateway import Endpoint, Gateway
from runpod_emulator.api.snapshot import job_details, snapshot
from runpod_emulator.faults import FaultAction, FaultPoint, FaultRule, InvalidFault, parse_rule
from runpod_emulator.workers.session import WorkerSession

SPOT_NOTICE_S = 5.0
LOG_LINES = 200
ACTIONS = "kill, freeze, thaw, spot, drain"


class AdminApi:
    """Routes that need the API key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/emulator/state", self._keyed(self.state)),
            web.get("/emulator/metrics", self._keyed(self.metrics)),
            web.get("/emulator/jobs/{job}", self._keyed(self.job)),
            web.get("/emulator/faults", self._keyed(self.faults)),
            web.post("/emulator/faults", self._keyed(self.add_fault)),
            web.delete("/emulator/faults", self._keyed(self.clear_faults)),
            web.delete("/emulator/faults/{fault}", self._keyed(self.remove_fault)),
            web.get("/emulator/workers/{worker}/log", self._keyed(self.log)),
            web.post("/emulator/workers/{worker}/{action}", self._keyed(self.strike)),
            web.post("/emulator/endpoints/{endpoint}/{supply}", self._keyed(self.supply)),
        ]

    async def state(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await snapshot(self._gateway))

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        try:
            from runpod_emulator.api import metrics  # prometheus-client is optional
        except ImportError as error:
            install = "pip install 'runpod-emulator[metrics]'"
            raise ApiError(
                501, f"metrics: prometheus-client is not installed; {install}"
            ) from error
        page = metrics.render(await snapshot(self._gateway))
        return web.Response(body=page, content_type="text/plain", charset="utf-8")

    async def job(self, request: web.Request) -> web.StreamResponse:
        """Return a job's history and cost, even while the job is hidden from its caller."""
        job = await self._gateway.store.get(request.match_info["job"])
        endpoint = self._gateway.endpoints.get(job.endpoint_id) if job is not None else None
        if job is None or endpoint is None:
            raise ApiError(404, "job not found")
        return web.json_response(job_details(self._gateway, endpoint, job))

    async def faults(self, request: web.Request) -> web.StreamResponse:
        state = await snapshot(self._gateway)
        return web.json_response(state["faults"])

    async def add_fault(self, request: web.Request) -> web.StreamResponse:
        try:
            rule = parse_rule(json.loads(await request.read()))
            self._gateway.faults.add(rule)
        except InvalidFault as error:
            raise ApiError(400, str(error)) from error
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "fault: expected a JSON object") from error
        return web.json_response({"id": rule.id}, status=201)

    async def clear_faults(self, request: web.Request) -> web.StreamResponse:
        self._gateway.clear_faults()
        return web.Response(status=204)

    async def remove_fault(self, request: web.Request) -> web.StreamResponse:
        if not self._gateway.faults.remove(request.match_info["fault"]):
            raise ApiError(404, "fault not found")
        return web.Response(status=204)

    async def log(self, request: web.Request) -> web.StreamResponse:
        """Return the last lines that a living worker has printed."""
        _, worker = self._worker(request)
        lines = worker.process.log_tail(LOG_LINES) if worker.process is not None else []
        return web.Response(text="".join(f"{line}\n" for line in lines))

    async def strike(self, request: web.Request) -> web.StreamResponse:
        """Carry out kill, freeze, thaw, drain, or spot with `?notice_s=` on a worker."""
        endpoint, worker = self._worker(request)
        action = request.match_info["action"]
        notice_s = _seconds(request, "notice_s", SPOT_NOTICE_S)
        if action == "drain":
            endpoint.fleet.drain(worker, "drained by hand")
        elif action == "thaw" and worker.process is not None:
            worker.process.thaw()
        elif action in (FaultAction.KILL, FaultAction.FREEZE, FaultAction.SPOT):
            rule = FaultRule(
                id="by-hand",
                at=FaultPoint.JOB_TAKEN,
                action=FaultAction(action),
                value=notice_s,
            )
            endpoint.fleet.apply(rule, worker)
        elif action != "thaw":
            raise ApiError(404, f"action: expected one of {ACTIONS}, got {action}")
        return web.json_response({"id": worker.id, "state": worker.state})

    async def supply(self, request: web.Request) -> web.StreamResponse:
        """Handle `throttle` (no GPU for further workers) and `unthrottle`."""
        endpoint = self._gateway.endpoint_of(request)
        supply = request.match_info["supply"]
        if supply not in ("throttle", "unthrottle"):
            raise ApiError(404, f"action: expected throttle or unthrottle, got {supply}")
        endpoint.fleet.is_short_of_gpus = supply == "throttle"
        return web.json_response({"is_short_of_gpus": endpoint.fleet.is_short_of_gpus})

    def _worker(self, request: web.Request) -> tuple[Endpoint, WorkerSession]:
        worker_id = request.match_info["worker"]
        for endpoint in self._gateway.endpoints.values():
            worker = endpoint.fleet.workers.get(worker_id)
            if worker is not None:
                return endpoint, worker
        raise ApiError(404, "worker not found")

    def _keyed(self, answer: Answer) -> Answer:
        async def keyed(request: web.Request) -> web.StreamResponse:
            self._gateway.check_key(request)
            return await answer(request)

        return keyed


def _seconds(request: web.Request, name: str, default: float) -> float:
    try:
        given = float(request.query.get(name, default))
    except ValueError as error:
        raise ApiError(
            400, f"{name}: expected seconds, got {request.query[name][:40]!r}"
        ) from error
    return max(0.0, given)
