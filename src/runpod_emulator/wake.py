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

    def ticket(self) -> asyncio.Event:
        """To be drawn before one looks: `wait` with it also finds what came while one looked."""
        return self._event

    async def wait(self, timeout_s: float, ticket: asyncio.Event | None = None) -> None:
        """Return at the first `notify` since the ticket, or from now on, or after `timeout_s`."""
        event = ticket or self._event
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
