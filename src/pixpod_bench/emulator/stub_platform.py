"""A minimal platform for the SDK's worker: a job is always ready, and each result accepted at once.

It has no queue, no database and no states, so that workers are never faster than with it. Prints
its address once it listens. `/health` counts the workers that have polled and the results.
"""

import asyncio
import itertools
import sys

from aiohttp import web

HOLD_S = 20.0
"""Seconds for which a job-stop poll is left open: the SDK repeats it at once after an answer."""


class StubPlatform:
    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._workers: set[str] = set()
        self._num_done = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v2/{endpoint}/job-take/{worker}", self.take)
        app.router.add_get("/v2/{endpoint}/job-take-batch/{worker}", self.take_batch)
        app.router.add_get("/v2/{endpoint}/job-stop/{worker}", self.stop)
        app.router.add_get("/v2/{endpoint}/ping/{worker}", self.ping)
        app.router.add_post("/v2/{endpoint}/job-done/{worker}/{job}", self.done)
        app.router.add_get("/v2/{endpoint}/health", self.health)
        return app

    async def take(self, request: web.Request) -> web.Response:
        self._workers.add(request.match_info["worker"])
        return web.json_response(self._job())

    async def take_batch(self, request: web.Request) -> web.Response:
        self._workers.add(request.match_info["worker"])
        num_jobs = int(request.query["batch_size"])
        return web.json_response([self._job() for _ in range(num_jobs)])

    async def stop(self, request: web.Request) -> web.Response:
        await asyncio.sleep(HOLD_S)
        return web.Response(status=204)

    async def ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def done(self, request: web.Request) -> web.Response:
        await request.read()
        self._num_done += 1
        return web.json_response({})

    async def health(self, request: web.Request) -> web.Response:
        workers = {"idle": 0, "running": len(self._workers)}
        return web.json_response({"jobs": {"completed": self._num_done}, "workers": workers})

    def _job(self) -> dict[str, object]:
        number = next(self._numbers)
        return {"id": f"job-{number}", "input": {"number": number}}


async def serve() -> None:
    """Run until the process is ended."""
    runner = web.AppRunner(StubPlatform().app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
