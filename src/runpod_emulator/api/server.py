"""The HTTP server: all routes, and the rules that apply to each of them.

The server is closed by default: every route needs a key except `/`, the API's description and those
that answer 501. A request that names another host is refused, so that no web page can reach the
server by a host name of its own.
"""

import logging
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler

from runpod_emulator.api import openapi
from runpod_emulator.api.admin_api import AdminApi
from runpod_emulator.api.api_error import ApiError
from runpod_emulator.api.client_api import ClientApi
from runpod_emulator.api.cors import allow_origin
from runpod_emulator.api.gateway import Gateway
from runpod_emulator.api.home_page import home_page_route
from runpod_emulator.api.not_emulated import not_emulated_routes
from runpod_emulator.api.worker_api import WorkerApi
from runpod_emulator.jobs.store import StoreUnusable

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 256_000_000
"""Largest body that is read; the platform's own limits are lower and have better messages."""


USUAL_NAMES = ("127.0.0.1", "localhost")
"""The usual host names, checked first because that is cheap."""


def make_app(gateway: Gateway, host: str, cors_origin: str | None = None) -> web.Application:
    """Make the application. `host` is its address; one that other machines reach accepts any name.

    Web pages of `cors_origin` may read the answers.
    """
    middlewares = [_errors_as_json]
    if is_loopback(host):
        middlewares.append(_only_this_host)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
    if cors_origin is not None:
        app.middlewares.append(allow_origin(app, cors_origin))
    app.add_routes(WorkerApi(gateway).routes())
    app.add_routes(ClientApi(gateway).routes())
    app.add_routes(AdminApi(gateway).routes())
    app.router.add_get("/openapi.json", _openapi)
    app.add_routes([home_page_route(gateway), *not_emulated_routes(gateway)])
    return app


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach this address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as JSON: the only error boundary of the server."""
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(error)
    except web.HTTPException as error:
        refusal = _refusal(ApiError(error.status, error.reason))
        refusal.headers.update({n: v for n, v in error.headers.items() if n == "Allow"})
        return refusal
    except web.RequestPayloadError:
        return _refusal(ApiError(400, "body: expected what Content-Encoding and the chunks say"))
    except StoreUnusable as error:
        logger.error("store unusable", extra={"error": str(error)})
        return _refusal(ApiError(503, "the emulator cannot use its database; see its log"))
    except ConnectionError:
        raise
    except Exception:
        logger.exception("request failed", extra={"path": request.path})
        return _refusal(ApiError(500, "internal error; see the emulator's log"))


@web.middleware
async def _only_this_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    name = request.host.rpartition(":")[0] if request.host[-1:] != "]" else request.host
    name = (name or request.host).lower().removesuffix(".")
    if name not in USUAL_NAMES and not is_loopback(name):
        raise ApiError(
            403, f"host: expected 127.0.0.1, [::1] or localhost, got {request.host[:80]!r}"
        )
    return await handler(request)


async def _openapi(request: web.Request) -> web.Response:
    return web.json_response(openapi.document())


def _refusal(error: ApiError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        # the platform's own answer here is plain text
        return web.Response(status=401, text=error.message, headers=headers)
    return web.json_response({"error": error.message}, status=error.status, headers=headers)
