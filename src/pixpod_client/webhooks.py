"""Verifies webhooks of pixpod, which follow Standard Webhooks.

A receiver is open to everybody: whatever arrives is either an Event or a WebhookRefused.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK_WINDOW_S = 300
"""A webhook whose timestamp is further from now is refused."""

MAX_SIGNATURES = 8
SECRET_BYTES = range(24, 65)

_HEADERS = {
    "webhook-id": re.compile(r"[\x21-\x7e]{1,256}"),
    "webhook-timestamp": re.compile(r"[0-9]{1,12}"),
}
_SIGNATURE = re.compile(r"(?<!\S)v1,[A-Za-z0-9+/]{43}=(?!\S)")


class WebhookRefused(Exception):
    """Body or headers are malformed, not signed with one of the secrets, or not of now.

    Answer with HTTP status 400 or 401.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A verified webhook. Keep `id` for `WEBHOOK_WINDOW_S`: a repeated one has the same.

    `type` is one of `started`, `progress`, `completed`, `failed` and `cancelled`. `data` has
    `job_id` and the fields of the reply. Any: JSON.
    """

    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any] = field(repr=False)


def verify(body: bytes | str, headers: Mapping[str, str], secrets: str | Sequence[str]) -> Event:
    """Return the event of a webhook that was signed with one of the secrets (`whsec_...`).

    `body` must be the bytes that arrived, not JSON that was written again. Raises WebhookRefused
    for whatever a sender may have done, and ValueError for secrets that cannot be used.
    """
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("secrets: expected at least one, got none")
    text = _decode(body)
    signed = _signed_headers(headers)
    if not any(_is_signed(key, text, signed) for key in keys):
        raise WebhookRefused("expected a signature by one of the secrets, sent just now")
    return _event(signed["webhook-id"], text)


def _key(secret: str) -> bytes:
    """Return the bytes of a secret. The library takes almost any text, and short keys."""
    text = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as exc:
        raise ValueError("secrets: expected whsec_ and base64") from exc
    if len(key) not in SECRET_BYTES:
        raise ValueError(f"secrets: expected 24 to 64 bytes, got {len(key)}")
    return key


def _decode(body: bytes | str) -> str:
    try:
        return (body if isinstance(body, bytes) else body.encode()).decode()
    except UnicodeError as exc:
        raise WebhookRefused("expected a body in UTF-8") from exc


def _signed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the three headers in a form that raises nothing foreign in the library."""
    given = {str(name).lower(): str(value) for name, value in headers.items()}
    for name, pattern in _HEADERS.items():
        if not pattern.fullmatch(given.get(name, "")):
            raise WebhookRefused(f"expected a header {name} of Standard Webhooks")
    signatures = _SIGNATURE.findall(given.get("webhook-signature", ""))
    if not signatures:
        raise WebhookRefused("expected a header webhook-signature with a signature v1")
    kept = " ".join(signatures[:MAX_SIGNATURES])
    return {**{name: given[name] for name in _HEADERS}, "webhook-signature": kept}


def _is_signed(key: bytes, text: str, signed: dict[str, str]) -> bool:
    try:
        Webhook(key).verify(text, signed, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


def _event(webhook_id: str, text: str) -> Event:
    try:
        found = json.loads(text)
        kind, data = found["type"], found["data"]
        timestamp = datetime.fromisoformat(found["timestamp"])
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise WebhookRefused("expected a body with type, timestamp and data") from exc
    if not isinstance(kind, str) or not isinstance(data, dict) or timestamp.tzinfo is None:
        raise WebhookRefused("expected a body with type, timestamp and data")
    return Event(id=webhook_id, type=kind, timestamp=timestamp, data=data)
