"""Polls that are held open: closed at once when a worker ends, unless their answer has begun."""

import asyncio
import socket
import threading
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, web

from pixpod.serving.draining import ClosingSession, Drain, PollClosed, Sockets

HOLD_S = 20.0
ARRIVAL_S = 0.6


class Polled:
    """Answers one poll when it is released: the headers first, the body when it is `finished`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.finished = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.was_closed = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.has_begun.set()
        try:
            await asyncio.wait_for(self.released.wait(), HOLD_S)
        except asyncio.CancelledError:
            self.was_closed.set()
            raise
        response = web.StreamResponse()
        await response.prepare(request)
        await self.finished.wait()
        await response.write(b"a job")
        return response

    @asynccontextmanager
    async def url(self):
        app = web.Application()
        app.router.add_get("/", self.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def closing_session(drain):
    sockets = Sockets()
    connector = TCPConnector(socket_factory=sockets.create)
    async with ClientSession(connector=connector) as session:
        yield ClosingSession(session, drain.begun, sockets, arrival_s=ARRIVAL_S)


@asynccontextmanager
async def polling():
    """A poll that is held, what it polls, and the drain that closes it."""
    polled, drain = Polled(), Drain()
    async with polled.url() as url, closing_session(drain) as closing:

        async def poll() -> str:
            async with closing.get(url) as response:
                return await response.text()

        task = asyncio.create_task(poll())
        await polled.has_begun.wait()
        yield task, polled, drain


def test_held_poll_is_closed():
    async def run():
        async with polling() as (task, polled, drain):
            began_at = time.monotonic()
            drain.begin()
            with pytest.raises(PollClosed):
                await task
            await asyncio.wait_for(polled.was_closed.wait(), 1)
            assert time.monotonic() - began_at < 1

    asyncio.run(run())


def test_answer_is_read_to_its_end_once_it_has_begun():
    async def run():
        async with polling() as (task, polled, drain):
            polled.released.set()
            await asyncio.sleep(0.05)
            drain.begin()
            await asyncio.sleep(0.3)
            polled.finished.set()
            assert await task == "a job"

    asyncio.run(run())


@pytest.mark.parametrize("answers", [True, False])
def test_platform_that_notices_the_end_late(answers):
    """It answers after the worker has begun to end, or never: a job that it sends is not lost."""
    body = b"a job" if answers else b""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def run():
        drain, over = Drain(), asyncio.Event()

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            drain.begin()
            if answers:
                await asyncio.sleep(ARRIVAL_S / 6)
                writer.write(answer)
            else:
                await over.wait()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, closing_session(drain) as closing:
            began_at = time.monotonic()
            if answers:
                async with closing.get(f"http://127.0.0.1:{port}/") as response:
                    assert await response.read() == body
            else:
                with pytest.raises(PollClosed):
                    async with closing.get(f"http://127.0.0.1:{port}/"):
                        pass
            assert time.monotonic() - began_at < HOLD_S / 10
            over.set()
            await asyncio.sleep(0.05)

    asyncio.run(run())


def test_answer_that_comes_in_the_moment_of_the_end_is_read():
    async def run():
        async with polling() as (task, polled, drain):
            drain.begin()
            polled.finished.set()
            polled.released.set()
            assert await task == "a job"

    asyncio.run(run())


def test_answer_that_comes_while_the_loop_is_blocked_is_read():
    """Loading a model may block it for longer than the platform has to answer."""

    def answer(server: socket.socket, loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
        poll, _ = server.accept()
        with poll:
            poll.recv(4096)
            loop.call_soon_threadsafe(drain.begin)
            assert poll.recv(1) == b""
            loop.call_soon_threadsafe(time.sleep, 1.5 * ARRIVAL_S)
            time.sleep(ARRIVAL_S / 6)
            poll.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na job")

    async def run(server: socket.socket):
        drain = Drain()
        loop = asyncio.get_running_loop()
        platform = threading.Thread(target=answer, args=(server, loop, drain))
        platform.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        async with closing_session(drain) as closing, closing.get(url) as response:
            assert await response.read() == b"a job"
        platform.join()

    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(run(server))


def test_poll_that_is_cancelled_is_closed():
    async def run():
        async with polling() as (task, polled, _):
            task.cancel()
            await asyncio.wait_for(polled.was_closed.wait(), 1)
            assert task.cancelled()

    asyncio.run(run())


def test_poll_that_fails_says_why():
    async def run():
        async with ClientSession() as session:
            closing = ClosingSession(session, asyncio.Event())
            with pytest.raises(ClientConnectionError):
                async with closing.get("http://127.0.0.1:9/"):
                    pass

    asyncio.run(run())


def test_fault_decides_the_exit_status():
    drain = Drain()
    drain.begin()
    assert (drain.status, drain.begun.is_set()) == (0, True)
    drain.begin(status=1)
    drain.begin()
    assert drain.status == 1
