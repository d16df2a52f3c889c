"""The events of one job, as its worker reports them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixpod.contract.webhooks import WebhookOptions
from pixpod.job import WebhookEvent
from pixpod.outputs.keys import JobKeys
from pixpod.serving.messages import make_message
from pixpod.serving.progress import ProgressSender
from pixpod.serving.webhooks import Webhooks


@dataclass(slots=True, kw_only=True, eq=False)
class JobEvents:
    """The events of one job for its receiver. Without `options`, nothing is sent.

    `keys` name the job in events, and its dead letters: by the id until the job is parsed.
    """

    job_id: str
    keys: JobKeys
    webhooks: Webhooks | None
    options: WebhookOptions | None

    def started(self) -> None:
        """Send that the job has begun."""
        self._start(WebhookEvent.STARTED, {})

    def cancelled(self) -> None:
        """Send that the job was cancelled. Nothing waits: its caller does not."""
        self._start(WebhookEvent.CANCELLED, {})

    async def ended(self, reply: dict[str, Any]) -> None:
        """Send the end of the job. If that is in vain, its reply gets a warning.

        Any: JSON.
        """
        event = WebhookEvent.FAILED if "error" in reply else WebhookEvent.COMPLETED
        sending = self._start(event, reply)
        if sending is None:
            return
        await asyncio.wait({sending})
        failure = "an unexpected error" if sending.exception() else sending.result()
        if failure is not None and "warnings" in reply:
            warning = f"the webhook for {event} was not delivered: {failure}"
            reply["warnings"] = [*reply["warnings"], warning]

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
        message = make_message(
            self.job_id,
            event,
            data,
            job_name=self.keys.job_name,
            timestamp=self.webhooks.now(),
            step=step,
        )
        return self.webhooks.start(message, self.options.target, self.keys)
