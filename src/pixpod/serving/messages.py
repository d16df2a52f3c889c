"""Events of jobs as they are sent to receivers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pixpod.job import WebhookEvent

MAX_BODY_BYTES = 20_000

IMAGE_LISTS = frozenset({"images", "controls"})
"""Fields of a reply that are lists of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event as it is sent. `timestamp` is when it happened."""

    job_id: str
    event: WebhookEvent
    id: str
    timestamp: datetime
    body: str = field(repr=False)


def make_message(
    job_id: str,
    event: WebhookEvent,
    data: Mapping[str, Any],
    *,
    job_name: str,
    timestamp: datetime,
    step: int | None = None,
) -> Message:
    """Return the message of an event. The same event of the same `job_name` has the same id.

    Inline images are left out; all data are if the body is larger than MAX_BODY_BYTES nevertheless.
    Any: JSON.
    """
    identity = json.dumps([job_name, event, step])
    fields = {"job_id": job_id, **data}
    for name in IMAGE_LISTS & fields.keys():
        fields[name] = [
            {key: value for key, value in image.items() if key != "data"} for image in fields[name]
        ]
    envelope = {"type": event, "timestamp": timestamp.isoformat()}
    body = json.dumps({**envelope, "data": fields})
    if len(body) > MAX_BODY_BYTES:
        body = json.dumps({**envelope, "data": {"job_id": job_id, "is_left_out": True}})
    message_id = "msg_" + hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Message(job_id=job_id, event=event, id=message_id, timestamp=timestamp, body=body)
