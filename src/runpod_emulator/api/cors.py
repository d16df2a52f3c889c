"""CORS for the pages of one origin, so that a browser front end can call the emulator."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

ANY_ORIGIN = "*"
MAX_AGE_S = 600
PREFLIGHT_HEADERS = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
    hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_S),
}


def allow_origin(app: web.Application, origin: str) -> Middleware:
    """Let pages of `origin`, or of any if it is `*`, read the answers of `app`.

    Return the middleware that answers their preflights, which carry no key.
    """

    def is_allowed(request: web.BaseRequest) -> bool:
        given = request.headers.get(hdrs.ORIGIN)
        return given is not None and origin in (ANY_ORIGIN, given)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        if is_allowed(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = hdrs.RETRY_AFTER

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS and is_allowed(request):
            return web.Response(status=204, headers=PREFLIGHT_HEADERS)
        return await handler(request)

    app.on_response_prepare.append(add_headers)
    return answer_preflight
