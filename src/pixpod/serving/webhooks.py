"""Sends the events of jobs to the receivers that their callers name, as Standard Webhooks.

Whatever becomes of an event, the job is not affected. Knows no HTTP library.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from pydantic import SecretStr

from pixpod.errors import FetchUnavailable
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target
from pixpod.job import WebhookEvent
from pixpod.outputs.dead_letter import DeadLetter
from pixpod.outputs.keys import JobKeys
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.messages import Message

if TYPE_CHECKING:
    from pixpod.inputs.client import Answer

log = logging.getLogger(__name__)

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


@dataclass(kw_only=True, eq=False)
class Webhooks:
    """Signs and sends messages with the secrets of a deployment.

    Without `letters`, a final event that is not delivered is lost.
    """

    client: WebhookClient
    secrets: tuple[SecretStr, ...]
    letters: DeadLetters | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    try_s: float = TRY_S
    retry_wait_s: float = RETRY_WAIT_S
    _sending: dict["asyncio.Task[str | None]", WebhookEvent] = field(
        default_factory=dict, init=False
    )

    def start(self, message: Message, target: Target, keys: JobKeys) -> "asyncio.Task[str | None]":
        """Send a message in the background, and keep a final event that is not delivered.

        The task returns why the message was not delivered, None if it was.
        """
        task = asyncio.create_task(self._send_or_keep(message, target, keys))
        self._sending[task] = message.event
        task.add_done_callback(self._end)
        return task

    async def settle(self) -> None:
        """Drop other events, and wait until each final one is delivered or is a dead letter."""
        for task, event in self._sending.items():
            if not event.is_final:
                task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def close(self) -> None:
        """Wait for messages that are being sent."""
        await asyncio.gather(*self._sending, return_exceptions=True)
        self.client.close()

    async def send(self, message: Message, target: Target) -> str | None:
        """Send a message: once, or up to twice if it is a final event.

        Returns why the message was not delivered, None if it was.
        """
        failure, may_succeed = await self._try(message, target)
        if failure is not None and may_succeed and message.event.is_final:
            await asyncio.sleep(self.retry_wait_s)
            failure, _ = await self._try(message, target)
        return failure

    def _end(self, task: "asyncio.Task[str | None]") -> None:
        del self._sending[task]
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook failed unexpectedly", exc_info=error)

    async def _send_or_keep(self, message: Message, target: Target, keys: JobKeys) -> str | None:
        (outcome,) = await asyncio.gather(self.send(message, target), return_exceptions=True)
        if outcome is None:
            return None
        if isinstance(outcome, BaseException):
            log.error("webhook failed unexpectedly", exc_info=outcome)
            outcome = "an unexpected error"
        extra = {"event": message.event, "host": target.host, "reason": outcome}
        log.warning("webhook not delivered", extra=extra)
        if self.letters is None or not message.event.is_final:
            return outcome
        letter = DeadLetter(
            job_id=message.job_id,
            event=message.event,
            webhook_id=message.id,
            timestamp=message.timestamp,
            url=target.url,
            body=message.body,
        )
        key = keys.letter_key(message.event)
        is_kept = await self.letters.keep(letter, key=key, reason=outcome)
        return f"{outcome}; {'it is' if is_kept else 'it could not be'} kept as a dead letter"

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
