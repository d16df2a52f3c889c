"""Ends a worker without losing a job that has reached it. Knows nothing of RunPod's SDK."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from aiohttp import AddrInfoType, ClientResponse, ClientSession

T = TypeVar("T")

ARRIVAL_S = 1.0
"""Time for the platform to notice that a poll ends, and for an answer that it has sent before."""


class PollClosed(TimeoutError):
    """A poll was given up before its answer began to arrive."""


@dataclass(kw_only=True, eq=False)
class Drain:
    """A worker's end: no further job is taken, and those that are here are run.

    `status` is the exit status. `begun` is set once the end has begun. `settle` is awaited once all
    jobs are reported: they may have left something to be done.
    """

    status: int = 0
    settle: Callable[[], Awaitable[None]] | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, status: int = 0) -> None:
        """Begin to end, on the event loop; the highest status holds."""
        self.status = max(self.status, status)
        self.begun.set()


class Sockets:
    """The sockets of a connector."""

    def __init__(self) -> None:
        self._open: WeakSet[socket.socket] = WeakSet()
        self._is_ended = False

    def create(self, address: "AddrInfoType") -> socket.socket:
        """Make a socket; a connector's `socket_factory`. Raises OSError after `end_requests`.

        A session repeats a GET whose connection was closed.
        """
        if self._is_ended:
            raise ConnectionAbortedError("expected no further request, because the worker ends")
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        self._open.add(made)
        return made

    def end_requests(self) -> None:
        """Tell the other sides that their answers are no longer awaited.

        What they had sent before they notice still arrives, which it does not on a closed socket.
        """
        self._is_ended = True
        for each in self._open:
            with contextlib.suppress(OSError):  # closed, or not connected yet
                each.shutdown(socket.SHUT_WR)


class ClosingSession:
    """Stands in for a session whose polls are closed when `closing` is set.

    An answer whose headers are there is read to its end. With the session's `sockets`, the other
    side is given `arrival_s` to close, and what it had sent before is no loss.
    """

    def __init__(
        self,
        session: "ClientSession",
        closing: asyncio.Event,
        sockets: Sockets | None = None,
        *,
        arrival_s: float = ARRIVAL_S,
    ) -> None:
        self._session = session
        self._closing = closing
        self._sockets = sockets
        self._arrival_s = arrival_s

    @asynccontextmanager
    async def get(self, url: str) -> AsyncIterator["ClientResponse"]:
        """Do what `ClientSession.get` does. Raises PollClosed."""
        async with AsyncExitStack() as stack:
            yield await self._unless_closed(
                stack.enter_async_context(self._session.get(url)),
            )

    async def _unless_closed(self, awaitable: Awaitable[T]) -> T:
        answer = asyncio.ensure_future(awaitable)
        closes = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({answer, closes}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if self._sockets:
                self._sockets.end_requests()
                await asyncio.wait({answer}, timeout=self._arrival_s)
            if answer.done() and not answer.exception():
                return answer.result()
            raise PollClosed("expected no further answer, because the worker ends")
        finally:
            closes.cancel()
            answer.cancel()
