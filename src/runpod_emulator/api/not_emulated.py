"""The parts of RunPod that are not emulated: their routes answer 501 and say so."""

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.gateway import Gateway

_LOAD_BALANCING = "load-balancing endpoints; call the worker's own HTTP server instead"
_MANAGEMENT = "management API; endpoints are flags of runpod-emulator or tables of its --config"

NOT_EMULATED: Mapping[str, str] = {
    "/v2/{endpoint}/openai{rest:(/.*)?}": (
        "OpenAI-compatible API; submit to /run or /runsync what the worker "
        "makes of it, for vLLM workers an input with openai_route and openai_input"
    ),
    "/v2/{endpoint}/batch{rest:.*}": "batch jobs; submit each job to /run",
    "/v2/{endpoint}/ping": _LOAD_BALANCING,
    "/ping": _LOAD_BALANCING,
    "/graphql": _MANAGEMENT,
    "/v1{rest:(/.*)?}": _MANAGEMENT,
}
"""Each path's description and alternative."""

MANAGED = ("catalog", "registries", "serverless", "templates")
"""Resources of RunPod's REST v2 whose paths look like those of an endpoint."""


def not_emulated_routes(gateway: Gateway) -> list[web.RouteDef]:
    """Return the routes, to be added after those that are emulated."""
    resources = [name for name in MANAGED if name not in gateway.endpoints]
    managed = {f"/v2/{name}{{rest:(/.*)?}}": _MANAGEMENT for name in resources}
    return [
        web.route("*", path, _refuse(text)) for path, text in {**managed, **NOT_EMULATED}.items()
    ]


def _refuse(text: str) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise ApiError(501, f"{request.path[:80]}: the emulator has no {text}")

    return refuse
