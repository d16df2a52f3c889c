"""A receiver of webhooks, and a worker that sends them to it."""

import asyncio
import base64
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from pydantic import SecretStr
from support.factories import OFFER

from pixpod.inputs.client import GuardedClient
from pixpod.inputs.targets import Targets, parse_opened
from pixpod.job import Delivery
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.stored_results import StoredResults
from pixpod.serving.webhooks import Webhooks
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine
from pixpod_client import verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another secret, of 31 bytes....").decode()
TRY_S = 0.3
INLINE = {"delivery": "inline"}


@dataclass
class Receiver:
    """Verifies each event, then answers with each of `statuses` in turn, the last for ever.

    It waits `seconds` before that, and for `gate` if it has one.
    """

    statuses: list[int] = field(default_factory=lambda: [200])
    seconds: float = 0.0
    gate: asyncio.Event | None = None
    secrets: tuple[str, ...] = (SECRET,)
    events: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def __call__(self, request):
        self.paths.append(request.path)
        self.events.append(verify(await request.read(), request.headers, self.secrets))
        await asyncio.sleep(self.seconds)
        if self.gate is not None:
            await self.gate.wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"Location": "/elsewhere", "Retry-After": "0"})

    @property
    def types(self):
        return [event.type for event in self.events]


@asynccontextmanager
async def worker_of(
    port, engine=None, *, secrets=(SECRET,), try_s=TRY_S, letters=None, bucket=None
):
    """`letters` is where dead letters go. With a `bucket`, images go there."""
    secrets = tuple(map(SecretStr, secrets))
    targets = Targets(opened=(parse_opened(f"webhook:127.0.0.1:{port}"),))
    webhooks = Webhooks(
        client=GuardedClient(targets, retry_waits_s=()),
        secrets=secrets,
        letters=letters and DeadLetters(store=letters, secrets=secrets),
        try_s=try_s,
        retry_wait_s=0.01,
    )
    stores = ({Delivery.S3: bucket} if bucket else {}) | {Delivery.INLINE: InlineImageStore()}
    async with Worker(
        capabilities=replace(OFFER, targets=targets, signs_webhooks=True, deliveries=tuple(stores)),
        engine=engine or FakeEngine(),
        delivery=ImageDelivery(
            stores=stores,
            key_prefix="live",
            key_secret=SecretStr("hidden"),
            max_reply_bytes=10_000_000,
        ),
        usd_per_gpu_second=0.5,
        concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
        refresh=Refresh(after_images=0),
        platform=None,
        worker_id="pod-1",
        max_job_s=60,
        results=bucket and StoredResults(store=bucket, secret=SecretStr("hidden")),
        webhooks=webhooks,
    ) as worker:
        yield worker


def url_of(port):
    return f"http://127.0.0.1:{port}/hook?token=pomegranate"


def warnings_of(reply):
    return [each for each in reply["warnings"] if "webhook" in each]
