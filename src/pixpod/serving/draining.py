"""Ends a worker without losing a job that has reached it. Knows nothing of RunPod's SDK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")

ARRIVAL_S = 0.1
"""Time for an answer that was sent before the worker began to end. The platform takes it for
delivered."""


class PollClosed(TimeoutError):
    """A poll was given up before its answer began to arrive."""


@dataclass(kw_only=True, eq=False)
class Drain:
    """A worker's end: no further job is taken, and those that are here are run.

    `status` is the exit status. `begun` is set once the end has begun.
    """

    status: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, status: int = 0) -> None:
        """Begin to end, on the event loop; the highest status holds."""
        self.status = max(self.status, status)
        self.begun.set()


class ClosingSession:
    """Stands in for a session whose polls are closed when `closing` is set.

    An answer whose headers are there is read to its end.
    """

    def __init__(self, session: "ClientSession", closing: asyncio.Event) -> None:
        self._session = session
        self._closing = closing

    @asynccontextmanager
    async def get(self, url: str) -> "AsyncIterator[ClientResponse]":
        """As `ClientSession.get`; raises PollClosed."""
        async with AsyncExitStack() as stack:
            answer = stack.enter_async_context(self._session.get(url))
            yield await _unless(self._closing, answer)


async def _unless(closing: asyncio.Event, awaitable: Awaitable[T]) -> T:
    """Raises PollClosed if the event comes first."""
    answer = asyncio.ensure_future(awaitable)
    closes = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({answer, closes}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await asyncio.wait({answer}, timeout=ARRIVAL_S)
        if not answer.done():
            raise PollClosed("expected no further answer, because the worker ends")
        return answer.result()
    finally:
        closes.cancel()
        answer.cancel()
