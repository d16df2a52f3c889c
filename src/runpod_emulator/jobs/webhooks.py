"""Posts jobs' ends to their webhooks: at least once each, and the same job never twice at a time.

`lifecycle` decides when an attempt is due and what follows it; the caller provides the body.
"""

import asyncio
import io
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.jobs import lifecycle
from runpod_emulator.jobs.job import Job, Webhook
from runpod_emulator.jobs.store import JobStore, StoreUnusable

logger = logging.getLogger(__name__)

MAX_SENDS = 100
MAX_SENDS_PER_RECEIVER = 20
"""Sends to one receiver at a time; a receiver that never answers leaves room for the others."""

_LOOK_AHEAD = 2 * MAX_SENDS
_PAUSE_S = 10.0
"""Pause after an unexpected error such as a full disk, instead of a tight loop."""

_GATHER_S = 0.02
"""Webhooks due within this time share one query, which takes some ms when many jobs wait."""

_DELIVERED = 200


class WebhookSender:
    """Sends the webhooks that are due by the store.

    `body` returns the document to post for a job. `forget` must remove a job that is over for its
    caller and has waited only for its webhook; it gets the job at its stored revision.
    """

    def __init__(
        self,
        store: JobStore,
        behaviour: Behaviour,
        clock: Callable[[], float],
        body: Callable[[Job], Awaitable[bytes]],
        forget: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._store = store
        self._behaviour = behaviour
        self._clock = clock
        self._body = body
        self._forget = forget
        self._wake = asyncio.Event()
        self._receivers: dict[str, str | None] = {}
        """Receivers of the webhooks being sent, by job id."""

    def notify(self) -> None:
        """Search for due webhooks at once, since a job with a webhook has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. Cancelling cuts attempts off; the next run makes them again."""
        async with self._session() as session, asyncio.TaskGroup() as sends:
            while True:
                self._wake.clear()
                try:
                    wait_s = await self._start_due(session, sends)
                except StoreUnusable:
                    logger.exception("webhooks cannot be read")
                    wait_s = _PAUSE_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                        await asyncio.sleep(_GATHER_S)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # a kept connection that is no longer open would cost an attempt
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._behaviour.webhook_timeout_s),
        )

    async def _start_due(
        self, session: aiohttp.ClientSession, sends: asyncio.TaskGroup
    ) -> float | None:
        """Start due webhooks that have room; return the time until the next is due, or None.

        The store's earliest time cannot be used: it may be that of a job that is being sent.
        """
        now = self._clock()
        for job in await self._store.webhooks_due(math.inf, _LOOK_AHEAD):
            webhook = job.webhook
            if webhook is None or webhook.next_at is None or job.id in self._receivers:
                continue
            if webhook.next_at > now:
                return webhook.next_at - now
            receiver = _receiver(webhook.url)
            if self._has_room(receiver):
                self._receivers[job.id] = receiver
                sends.create_task(self._send(session, job, webhook))
        return None

    def _has_room(self, receiver: str | None) -> bool:
        busy = list(self._receivers.values())
        return len(busy) < MAX_SENDS and busy.count(receiver) < MAX_SENDS_PER_RECEIVER

    async def _send(self, session: aiohttp.ClientSession, job: Job, webhook: Webhook) -> None:
        try:
            failure = await self._attempt(session, job, webhook)
            await self._record(job, failure)
        except Exception:
            logger.exception("webhook broke", extra={"job_id": job.id})
            await asyncio.sleep(_PAUSE_S)
        finally:
            del self._receivers[job.id]
            self._wake.set()

    async def _attempt(
        self, session: aiohttp.ClientSession, job: Job, webhook: Webhook
    ) -> str | None:
        """Make one attempt. Return the reason of a failure, or None after a confirmation."""
        body = await self._body(job)
        failure = await _post(session, webhook.url, body)
        outcome = {"attempt": webhook.attempts + 1, "status": failure or f"HTTP {_DELIVERED}"}
        level = logging.INFO if failure is None else logging.WARNING
        logger.log(level, "webhook attempt", extra={"job_id": job.id, **outcome})
        return failure

    async def _record(self, sent: Job, failure: str | None) -> None:
        """Record the outcome, unless the job has ended again since the attempt."""
        while (job := await self._store.get(sent.id)) and job.webhook == sent.webhook:
            recorded = self._recorded(job, failure)
            if recorded is None:
                return
            if recorded.is_hidden and recorded.webhook and recorded.webhook.next_at is None:
                # not recorded first: a crash between the two would keep the job for ever
                await self._forget(recorded)
                return
            if await self._store.replace(recorded):
                return

    def _recorded(self, job: Job, failure: str | None) -> Job | None:
        now = self._clock()
        if failure is None:
            return lifecycle.webhook_delivered(job, now)
        return lifecycle.webhook_failed(job, now, failure, self._behaviour)


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> str | None:
    """Post; return the reason of a failure, or None. It omits the URL, which may have a secret."""
    if _receiver(url) is None:
        return "not an http or https URL"
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(
            url, data=io.BytesIO(body), headers=headers, allow_redirects=False
        ) as reply:
            return None if reply.status == _DELIVERED else f"HTTP {reply.status}"
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        return type(exc).__name__


def _receiver(url: str) -> str | None:
    """Return host and port of an http or https URL, None for any other text."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.netloc or None if parts.scheme in ("http", "https") else None
