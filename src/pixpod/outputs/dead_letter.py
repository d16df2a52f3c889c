"""The file of an event that its receiver has not got, from which the event can be sent again.

Whoever can read the bucket sees the host and the path of the receiver, the ids and the reason. The
whole URL and the body are sealed: a query may carry a token, and links to images are signed.
"""

import base64
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pixpod.job import WebhookEvent
from pixpod.outputs.keys import keyed_hash

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

MAX_LETTER_BYTES = 512_000
"""More than any has: a URL of 8,192 characters that are all escaped, and a body of 20 kB."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DeadLetter(_Part):
    """An event as it was to be sent. `timestamp` is when it happened."""

    job_id: str
    event: WebhookEvent
    webhook_id: str
    timestamp: datetime
    url: str = Field(repr=False)
    body: str = Field(repr=False)


class _Sealed(_Part):
    """`key` is the file's own, so that a copy under another key is no letter."""

    key: str
    letter: DeadLetter


class _File(_Part):
    """A letter as JSON. Only `sealed` is read again; the rest is for people."""

    host: str
    path: str
    job_id: str
    event: WebhookEvent
    webhook_id: str
    timestamp: datetime
    reason: str
    sealed: str


def seal_letter(
    letter: DeadLetter, *, key: str, reason: str, secrets: tuple[SecretStr, ...]
) -> bytes:
    """Return the file for `key`, sealed with the first secret. `reason` is shown as it is."""
    url = urlsplit(letter.url)
    content = _Sealed(key=key, letter=letter).model_dump_json().encode()
    file = _File(
        host=url.hostname or "",
        path=url.path,
        job_id=letter.job_id,
        event=letter.event,
        webhook_id=letter.webhook_id,
        timestamp=letter.timestamp,
        reason=reason,
        sealed=_fernet(secrets).encrypt(content).decode("ascii"),
    )
    return file.model_dump_json(indent=1).encode()


def open_letter(data: bytes, *, key: str, secrets: tuple[SecretStr, ...]) -> DeadLetter:
    """Return the letter of the file under `key`, which any of the secrets may have sealed.

    Raises ValueError, with the reason, for a file that `seal_letter` did not make for this key.
    """
    from cryptography.fernet import InvalidToken

    if len(data) > MAX_LETTER_BYTES:
        raise ValueError(f"expected at most {MAX_LETTER_BYTES} bytes, got more")
    try:
        file = _File.model_validate_json(data)
        sealed = _Sealed.model_validate_json(_fernet(secrets).decrypt(file.sealed.encode()))
    except InvalidToken as exc:
        raise ValueError("expected a seal by one of PIXPOD_WEBHOOK_SECRETS") from exc
    except ValidationError as exc:
        raise ValueError("expected the content of a dead letter, got something else") from exc
    if sealed.key != key:
        raise ValueError("expected the letter of this key, got a copy of another one")
    return sealed.letter


def _fernet(secrets: tuple[SecretStr, ...]) -> "MultiFernet":
    """Return the cipher of the webhook secrets: the first seals, all open."""
    from cryptography.fernet import Fernet, MultiFernet  # 0.1 s, and few jobs need it

    keys = (bytes.fromhex(keyed_hash(secret, "dead letters")) for secret in secrets)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])
