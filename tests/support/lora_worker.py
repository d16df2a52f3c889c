"""Workers that may fetch LoRAs from a server of the test's own."""

import asyncio
import socket
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from support.fake_internet import local_server
from support.tiny_models import Desk, build_tiny_worker

LORAS = Path(__file__).resolve().parents[2] / "model_cache" / "tiny" / "loras"


@dataclass
class LoraDesk(Desk):
    """Runs jobs while a server has `files` by path. `port` is the server's.

    `requests` are the paths that were asked for, with the status of each answer.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, int]] = field(default_factory=list)
    has_etags: bool = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def replies(self, jobs):
        async def send():
            async with local_server(self._answer, self.port):
                handled = (
                    self.worker.handle({"id": f"job-{number}", "input": dict(job)})
                    for number, job in enumerate(jobs)
                )
                return await asyncio.gather(*handled)

        return asyncio.run(send())

    def reply(self, job_id="job", **given):
        return self.replies([given])[0]

    async def _answer(self, request):
        body = self.files.get(request.path.removeprefix("/"))
        etag = f'"{hash(body)}"'
        if body is None:
            answer = web.Response(status=404)
        elif self.has_etags and request.headers.get("If-None-Match") == etag:
            answer = web.Response(status=304)
        else:
            answer = web.Response(body=body, headers={"ETag": etag} if self.has_etags else {})
        self.requests.append((request.path, answer.status))
        return answer


def lora_desk(folder: Path, models: str, **environ: str) -> LoraDesk:
    """A worker of these models that is started; stop it in the end."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    worker = build_tiny_worker(
        folder / "images",
        PIXPOD_MODELS=models,
        PIXPOD_ALLOW_TARGETS=f"127.0.0.1:{port}",
        PIXPOD_LOCAL_DIR=str(folder / "local"),
        **{"PIXPOD_LORA_DIR": str(LORAS), **environ},
    )
    worker.start()
    return LoraDesk(worker, port=port)
