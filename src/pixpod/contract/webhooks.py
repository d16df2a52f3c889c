"""Reads from a payload where the events of a job are sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import is_unicode
from pixpod.contract.rules import Capabilities
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target, Use
from pixpod.job import WebhookEvent

DEFAULT_EVENTS = frozenset(event for event in WebhookEvent if event.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """The receiver of a job's events, and those that it gets."""

    target: Target
    events: frozenset[WebhookEvent]


def find_webhook(raw: Mapping[str, Any], capabilities: Capabilities) -> WebhookOptions | None:
    """Return the webhook of a job, be the rest of it as it may: a refused job has events, too.

    None if the job names none, or one that cannot be used, which is a problem of the job. Any: a
    JSON document.
    """
    job_id, given = raw.get("id"), raw.get("input")
    if not (isinstance(job_id, str) and is_unicode(job_id) and isinstance(given, dict)):
        return None
    fields = {name: given.get(name) for name in ("webhook_url", "webhook_events")}
    try:
        found = JobInput.model_validate({"model": "-", "prompt": "-", **fields})
    except ValidationError:
        return None
    if found.webhook_url is None or not capabilities.signs_webhooks:
        return None
    try:
        target = capabilities.targets.parse(found.webhook_url, Use.WEBHOOK)
    except Refused:
        return None
    events = found.webhook_events
    return WebhookOptions(
        target=target, events=DEFAULT_EVENTS if events is None else frozenset(events)
    )
