"""Keeps the ends of jobs that their receivers have not got. `scripts/redeliver` sends them again.

Knows no concrete store.
"""

import asyncio
import logging
from dataclasses import dataclass

from pydantic import SecretStr

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.outputs.dead_letter import DeadLetter, seal_letter
from pixpod.outputs.storage import FileStore

log = logging.getLogger(__name__)

LETTER_S = 20.0
RETRY_WAIT_S = 1.0
"""A receiver and a bucket may be unreachable for the same reason, so one try is not enough."""


@dataclass(kw_only=True, eq=False)
class DeadLetters:
    """Dead letters in the place where a deployment keeps images, sealed with webhook secrets."""

    store: FileStore
    secrets: tuple[SecretStr, ...]
    limit_s: float = LETTER_S
    retry_wait_s: float = RETRY_WAIT_S

    async def keep(self, letter: DeadLetter, *, key: str, reason: str) -> bool:
        """Write a letter, and return whether it is there. All tries take at most `limit_s`."""
        error: Exception | None = None
        try:
            async with asyncio.timeout(self.limit_s):
                data = await asyncio.to_thread(
                    seal_letter, letter, key=key, reason=reason, secrets=self.secrets
                )
                while True:
                    try:
                        await self.store.put_file(data, key)
                    except StorageUnavailable as exc:
                        error = exc
                    else:
                        log.info("dead letter written", extra={"key": key})
                        return True
                    await asyncio.sleep(self.retry_wait_s)
        except StorageDenied as exc:
            error = exc
        except TimeoutError as exc:
            error = error or exc
        log.error("dead letter not written", extra={"error": str(error) or "took too long"})
        return False
