"""Sends the events of jobs to the receivers that their callers name, as Standard Webhooks.

Whatever becomes of an event, the job is not affected. Knows no HTTP library.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from pixpod.contract.webhooks import WebhookOptions
from pixpod.errors import FetchUnavailable
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target
from pixpod.job import WebhookEvent
from pixpod.serving.progress import ProgressSender

if TYPE_CHECKING:
    from pixpod.inputs.client import Answer

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 20_000

TRY_S = 2.0
RETRY_WAIT_S = 1.0
"""Two tries and the wait between them take five seconds at most, which the job's reply waits."""


class WebhookClient(Protocol):
    """Sends one request. `pixpod.inputs.client.GuardedClient` does."""

    async def write(
        self,
        method: str,
        target: Target,
        body: bytes,
        headers: Mapping[str, str],
        *,
        total_s: float,
    ) -> "Answer":
        """Return the answer, whatever its status. Raises Refused."""

    def close(self) -> None:
        """Take no further calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event as it is sent. `timestamp` is when it happened."""

    event: WebhookEvent
    id: str
    timestamp: datetime
    body: str = field(repr=False)


def make_message(
    job_id: str,
    event: WebhookEvent,
    data: Mapping[str, Any],
    *,
    timestamp: datetime,
    step: int | None = None,
) -> Message:
    """Return the message of an event. The same event of the same job has the same id, always.

    Inline images are left out; all data are if the body is larger than MAX_BODY_BYTES nevertheless.
    Any: JSON.
    """
    name = json.dumps([job_id, event, step])
    fields = {"job_id": job_id, **data}
    if images := fields.get("images"):
        fields["images"] = [
            {key: value for key, value in image.items() if key != "data"} for image in images
        ]
    envelope = {"type": event, "timestamp": timestamp.isoformat()}
    body = json.dumps({**envelope, "data": fields})
    if len(body) > MAX_BODY_BYTES:
        body = json.dumps({**envelope, "data": {"job_id": job_id, "is_left_out": True}})
    message_id = "msg_" + hashlib.sha256(name.encode()).hexdigest()[:32]
    return Message(event=event, id=message_id, timestamp=timestamp, body=body)


@dataclass(kw_only=True, eq=False)
class Webhooks:
    """Signs and sends messages with the secrets of a deployment."""

    client: WebhookClient
    secrets: tuple[SecretStr, ...]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    try_s: float = TRY_S
    retry_wait_s: float = RETRY_WAIT_S
    _sending: set["asyncio.Task[str | None]"] = field(default_factory=set, init=False)

    def start(self, message: Message, target: Target) -> "asyncio.Task[str | None]":
        """Send a message in the background: once, or up to twice if it is a final event.

        The task returns why the message was not delivered, None if it was.
        """
        task = asyncio.create_task(self._send(message, target))
        self._sending.add(task)
        task.add_done_callback(self._end)
        return task

    async def close(self) -> None:
        """Wait for messages that are being sent."""
        await asyncio.gather(*self._sending, return_exceptions=True)
        self.client.close()

    def _end(self, task: "asyncio.Task[str | None]") -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook failed unexpectedly", exc_info=error)

    async def _send(self, message: Message, target: Target) -> str | None:
        failure, may_succeed = await self._try(message, target)
        if failure is not None and may_succeed and message.event.is_final:
            await asyncio.sleep(self.retry_wait_s)
            failure, _ = await self._try(message, target)
        if failure is not None:
            extra = {"event": message.event, "host": target.host, "reason": failure}
            log.warning("webhook not delivered", extra=extra)
        return failure

    async def _try(self, message: Message, target: Target) -> tuple[str | None, bool]:
        """Return why a try failed, None if it did not, and whether another one may succeed."""
        headers = self._headers(message)
        body = message.body.encode()
        try:
            answer = await self.client.write("POST", target, body, headers, total_s=self.try_s)
        except Refused as refused:
            return f"expected {refused.accepted}", refused.error is FetchUnavailable
        if 200 <= answer.status < 300:
            return None, False
        return f"HTTP status {answer.status}", answer.status >= 500

    def _headers(self, message: Message) -> dict[str, str]:
        from standardwebhooks import Webhook  # only where webhooks are signed

        sent_at = self.now()
        assert sent_at.tzinfo is UTC, "the library replaces other time zones"
        signatures = [
            Webhook(secret.get_secret_value()).sign(message.id, sent_at, message.body)
            for secret in self.secrets
        ]
        return {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvents:
    """The events of one job for its receiver. Without `options`, nothing is sent."""

    job_id: str
    webhooks: Webhooks | None
    options: WebhookOptions | None

    def started(self) -> None:
        """Send that the job has begun."""
        self._start(WebhookEvent.STARTED, {})

    def cancelled(self) -> None:
        """Send that the job was cancelled. Nothing waits: its caller does not."""
        self._start(WebhookEvent.CANCELLED, {})

    async def ended(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Send the end of the job, and return its reply, with a warning if that was in vain.

        Any: JSON.
        """
        event = WebhookEvent.FAILED if "error" in reply else WebhookEvent.COMPLETED
        sending = self._start(event, reply)
        if sending is None:
            return reply
        await asyncio.wait({sending})
        failure = "an unexpected error" if sending.exception() else sending.result()
        if failure is None or "warnings" not in reply:
            return reply
        warning = f"the webhook for {event} was not delivered: {failure}"
        return {**reply, "warnings": [*reply["warnings"], warning]}

    def with_progress(self, send: ProgressSender | None) -> ProgressSender | None:
        """Return a sender that sends updates to the receiver as well, without waiting for it."""
        if self.options is None or WebhookEvent.PROGRESS not in self.options.events:
            return send

        async def send_both(job_id: str, update: Mapping[str, object]) -> None:
            step = update["step"]
            assert isinstance(step, int)
            self._start(WebhookEvent.PROGRESS, update, step=step)
            if send is not None:
                await send(job_id, update)

        return send_both

    def _start(
        self, event: WebhookEvent, data: Mapping[str, Any], *, step: int | None = None
    ) -> "asyncio.Task[str | None] | None":
        if self.webhooks is None or self.options is None or event not in self.options.events:
            return None
        now = self.webhooks.now()
        message = make_message(self.job_id, event, data, timestamp=now, step=step)
        return self.webhooks.start(message, self.options.target)
