"""Wakes everybody who waits for the same thing, for long polls that look again."""

import asyncio
from contextlib import suppress


class Wake:
    """Unlike an `asyncio.Event` it needs no reset: each `notify` wakes those who wait then."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next `notify`, or after `timeout_s`."""
        event = self._event
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
