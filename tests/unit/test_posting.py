"""Results against a platform that refuses, resets and stalls: what is sent, and how often."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web

from pixpod.serving.posting import Address, post_result, post_update
from pixpod.serving.replies import BulkyReply

RESET = "reset"
RESULT = {"output": {"images": ["a red circle"], "text": "grün \ud800"}, "stopPod": True}


class Platform:
    """Answers with the outcomes in their order, then with 200."""

    def __init__(self, *outcomes: int | str) -> None:
        self.outcomes = [*outcomes]
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        outcome = self.outcomes.pop(0) if self.outcomes else 200
        if outcome == RESET:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=int(outcome))

    @asynccontextmanager
    async def address(self, limit_s: float = 60.0):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/job-done", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/job-done"
        try:
            async with ClientSession() as session:
                yield Address(session=session, url=url, job_id="job-1", limit_s=limit_s)
        finally:
            await runner.cleanup()


def post(platform: Platform, result=RESULT, *, limit_s: float = 60.0, send=post_result) -> None:
    async def once() -> None:
        async with platform.address(limit_s) as address:
            await send(address, result)

    asyncio.run(once())


def bulky(smaller):
    """A result whose reply has this smaller form."""

    async def shrink():
        return smaller

    return {"output": BulkyReply({"data": "x" * 100}, shrink), "stopPod": True}


def test_result_is_json_and_names_its_job():
    platform = Platform()
    post(platform)
    assert [json.loads(body) for body in platform.bodies] == [RESULT]
    assert platform.headers[0]["X-Request-ID"] == "job-1"


@pytest.mark.parametrize("outcome", [RESET, 408, 425, 429, 500, 503])
def test_transient_fault_is_followed_by_the_same_bytes(outcome, caplog):
    platform = Platform(outcome)
    post(platform)
    first, second = platform.bodies
    assert first == second
    assert "result not delivered" not in caplog.messages


def test_pauses_grow():
    platform = Platform(RESET, 429)
    began_at = time.monotonic()
    post(platform)
    assert len(set(platform.bodies)) == 1
    assert len(platform.bodies) == 3
    assert time.monotonic() - began_at >= 0.5 + 1.0


def test_tries_end_with_their_time(caplog):
    platform = Platform(*[503] * 10)
    began_at = time.monotonic()
    post(platform, limit_s=1.0)
    assert len(platform.bodies) == 2
    assert time.monotonic() - began_at < 1.5
    assert "result not delivered" in caplog.messages


def test_platform_that_does_not_answer_is_given_up(caplog):
    class Stalling(Platform):
        async def answer(self, request: web.Request) -> web.Response:
            await asyncio.sleep(60)
            return web.Response()

    post(Stalling(), limit_s=0.2)
    assert "result not delivered" in caplog.messages


@pytest.mark.parametrize("status", [401, 403, 404, 409])
def test_refusal_is_followed_by_nothing(status, caplog):
    platform = Platform(status)
    post(platform, bulky({"url": "short"}))
    assert len(platform.bodies) == 1
    assert "result not delivered" in caplog.messages


@pytest.mark.parametrize("status", [400, 413])
def test_result_that_is_too_large_is_followed_by_a_smaller_one(status):
    platform = Platform(status, RESET)
    post(platform, bulky({"url": "short"}))
    large, small, again = platform.bodies
    assert json.loads(large)["output"] == {"data": "x" * 100}
    assert json.loads(small) == {"output": {"url": "short"}, "stopPod": True}
    assert again == small


def test_result_that_has_no_smaller_form_but_an_error_ends_the_job():
    platform = Platform(413)
    post(platform, bulky({"error": "result_too_large: ask for less"}))
    body = {"stopPod": True, "error": "result_too_large: ask for less"}
    assert json.loads(platform.bodies[-1]) == body


def test_smaller_result_is_the_last():
    platform = Platform(400, 400)
    post(platform, bulky({"url": "short"}))
    assert len(platform.bodies) == 2


def test_small_result_that_is_refused_is_sent_once_more():
    platform = Platform(400)
    post(platform)
    assert len(platform.bodies) == 2


@pytest.mark.parametrize("outcome", [RESET, 429, 503, 400])
def test_update_is_sent_once(outcome, caplog):
    platform = Platform(outcome)
    post(platform, {"status": "IN_PROGRESS", "output": {"step": 1}}, send=post_update)
    assert len(platform.bodies) == 1
    assert "update not delivered" in caplog.messages
