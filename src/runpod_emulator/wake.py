"""Wakes all tasks that wait for the same event, for long polls that check again."""

import asyncio
from contextlib import suppress


class Wake:
    """A repeatable event: each `notify` wakes all tasks that wait then, without a reset."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def next_event(self) -> asyncio.Event:
        """Return the event of the next `notify`. Get it before a check, and pass it to `wait`.

        Then a `notify` during the check ends the wait at once.
        """
        return self._event

    async def wait(self, timeout_s: float, since: asyncio.Event | None = None) -> None:
        """Return at the first `notify` (since `since`, if given), or after `timeout_s`."""
        event = since or self._event
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
