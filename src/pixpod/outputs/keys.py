"""Keys of a job's files, which nobody can guess and which never change what they name."""

import hmac
import re
from dataclasses import dataclass, field

from pydantic import SecretStr

from pixpod.job import ImageFormat, WebhookEvent

_MAX_NAME_CHARACTERS = 80
_TOKEN_BITS = 128

LETTER_SUFFIX = ".dead-letter"


def keyed_hash(secret: SecretStr, message: str) -> str:
    """Return the HMAC-SHA256 of a text in hex. Each use of a secret has its own form of message."""
    key = secret.get_secret_value().encode()
    return hmac.digest(key, message.encode(), "sha256").hex()


def idempotent_name(idempotency_key: str, *, key_prefix: str, secret: SecretStr) -> str:
    """Return the name of a job with this key, which no job id and no other `key_prefix` has."""
    digest = keyed_hash(secret, f"{key_prefix}\n{idempotency_key}")
    return f"key-{digest[: _TOKEN_BITS // 4]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKeys:
    """Keys below one job's folder, `<prefix>/<key_prefix>/<job name>`.

    The prefixes are as `clean_prefix` left them, maybe empty. Names of jobs are shown with `_` for
    unsafe characters and cut, hence folders may look alike; the tokens in keys are made of the
    whole name and cannot be guessed without `secret`.
    """

    prefix: str
    key_prefix: str
    job_name: str
    secret: SecretStr = field(repr=False)

    @property
    def folder(self) -> str:
        shown = re.sub(r"[^A-Za-z0-9._-]|^\.", "_", self.job_name)[:_MAX_NAME_CHARACTERS] or "_"
        return "/".join(part for part in (self.prefix, self.key_prefix, shown) if part)

    def image_key(self, *, name: str, index: int, sha256: str, format: ImageFormat) -> str:
        """Return `<folder>/<name>-<index>-<token>.<format>`, without `name` if that is empty.

        Another content (`sha256`) has another key, so a link never changes what it returns.
        """
        token = self._token(f"{index} {sha256} {self.job_name}")
        stem = "-".join(part for part in (name, str(index), token) if part)
        return f"{self.folder}/{stem}.{format}"

    @property
    def result_key(self) -> str:
        """Key of the result file; see `result_file`."""
        return f"{self.folder}/{self._token(f'result {self.job_name}')}.result"

    def letter_key(self, event: WebhookEvent) -> str:
        """Return the key of the dead letter of an event; see `dead_letter`."""
        return f"{self.folder}/{self._token(f'letter {event} {self.job_name}')}{LETTER_SUFFIX}"

    def _token(self, message: str) -> str:
        return keyed_hash(self.secret, message)[: _TOKEN_BITS // 4]
