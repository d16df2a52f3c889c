"""Callers' `s3Config` at rest: encrypted under a key made from the API key.

It knows nothing of jobs or of where the sealed text is kept.
"""

import base64
import json

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES = 32
_PURPOSE = b"runpod_emulator s3Config"


class SealBroken(Exception):
    """What was sealed cannot be opened: sealed under another API key or salt, or altered."""


class Sealer:
    """Seals JSON values. `salt` is random, kept beside the database, and not secret."""

    def __init__(self, api_key: str, salt: bytes) -> None:
        key = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=_PURPOSE)
        self._fernet = Fernet(base64.urlsafe_b64encode(key.derive(api_key.encode())))

    def __repr__(self) -> str:
        return "Sealer()"

    def seal(self, value: object) -> str:
        return self._fernet.encrypt(json.dumps(value).encode()).decode()

    def open(self, sealed: str) -> object:
        """Raises `SealBroken`."""
        try:
            opened: object = json.loads(self._fernet.decrypt(sealed.encode()))
        except InvalidToken as exc:
            raise SealBroken(
                "the stored s3Config does not open with this API key: start again with the key "
                "under which the job was submitted, or submit the job again"
            ) from exc
        return opened
