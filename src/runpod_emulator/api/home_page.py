"""The page that a browser sees at `/`: the endpoints, and how to submit a first job.

It needs no key and shows none.
"""

from html import escape

from aiohttp import web

from runpod_emulator.api.gateway import Gateway

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>RunPod emulator</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto }}
  pre {{ background: #f3f3f3; padding: .8rem; overflow-x: auto }}
  td, th {{ text-align: left; padding: .1rem 1.5rem .1rem 0 }}
</style>
<h1>RunPod emulator</h1>
<p>This is RunPod Serverless on this machine. Clients of the <code>runpod</code> SDK work unmodified
once they have its address and its key:</p>
<pre>export RUNPOD_ENDPOINT_BASE_URL={base_url} RUNPOD_API_KEY=...</pre>
<p>The key is in the file <code>api_key</code> of the state folder (by default
<code>.runpod_emulator</code>), unless you chose one; the terminal in which
<code>runpod-emulator</code> runs says where it is.</p>
<h2>Endpoints</h2>
<table><tr><th>endpoint</th><th>workers</th></tr>
{endpoints}
</table>
<h2>A first job</h2>
<pre>curl {base_url}/{first}/runsync \\
  -H "Authorization: Bearer $RUNPOD_API_KEY" \\
  -H "Content-Type: application/json" -d '{{"input": {{"prompt": "Hello"}}}}'</pre>
<h2>More</h2>
<ul>
  <li><a href="/openapi.json">/openapi.json</a>: the client API</li>
  <li><code>/emulator/state</code>: workers, jobs, warnings and the bill (with the key)</li>
  <li><code>/emulator/workers/ID/log</code>: the last lines of a worker (with the key)</li>
  <li><code>/emulator/metrics</code>: the same for Prometheus (with the key)</li>
</ul>
</html>
"""


def home_page_route(gateway: Gateway) -> web.RouteDef:
    async def home_page(request: web.Request) -> web.StreamResponse:
        base_url = f"{request.url.origin()}/v2"
        text = render(gateway, base_url)
        return web.Response(text=text, content_type="text/html", headers=HEADERS)

    return web.get("/", home_page)


def render(gateway: Gateway, base_url: str) -> str:
    rows = "\n".join(
        f"<tr><td><code>{escape(each)}</code></td><td>{_workers(gateway, each)}</td></tr>"
        for each in gateway.endpoints
    )
    first = next(iter(gateway.endpoints))
    return _PAGE.format(base_url=escape(base_url), endpoints=rows, first=escape(first))


def _workers(gateway: Gateway, endpoint_id: str) -> str:
    """Return the present states of an endpoint's workers."""
    states = [str(worker.state) for worker in gateway.endpoints[endpoint_id].fleet.workers.values()]
    return escape(", ".join(states)) or "none; the first job starts one"
