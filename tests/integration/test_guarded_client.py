"""The guarded client against a fake internet and against servers that misbehave."""

import asyncio
import gzip
import logging
import socket
import struct
import time

import pytest
from aiohttp import web
from support.fake_internet import (
    PUBLIC,
    PUBLIC_V6,
    FakeInternet,
    local_server,
    make_certificate,
    raw_server,
    running,
)
from support.urls import HOSTILE, LEGITIMATE

from pixpod.errors import FetchFailed, FetchUnavailable, ImageRefused, UrlRefused
from pixpod.inputs.client import MAX_ANSWER_BYTES, GuardedClient, ReadLimits
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target, Targets, Use, parse_opened

LIMITS = ReadLimits(max_bytes=1_000_000, total_s=5, too_large=ImageRefused)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    names = {name for each in LEGITIMATE for name in each.names}
    hosts = ("redirect.example", "down.example", PUBLIC, PUBLIC_V6)
    return make_certificate(tmp_path_factory.mktemp("tls"), sorted({*names, *hosts}))


async def join(blocks):
    return b"".join([block async for block in blocks])


async def use(client, targets, url, use, limits=LIMITS):
    """Read, or write two bytes; returns the body."""
    target = targets.parse(url, use)
    if use is Use.READ:
        return await client.read(target, limits, join)
    answer = await client.write("PUT", target, b"ab", {}, total_s=limits.total_s)
    assert answer.status == 200
    return answer.body


async def visit(internet, certificate, url, for_use):
    targets = Targets()
    async with running(internet, certificate):
        client = GuardedClient(
            targets,
            look_up=internet.look_up,
            make_socket=internet.make_socket,
            tls=certificate.client,
            retry_waits_s=(0, 0),
        )
        try:
            return await use(client, targets, url, for_use)
        finally:
            client.close()


def test_hostile_urls_reach_no_closed_address_and_are_refused_with_a_code(certificate):
    assert len(HOSTILE) >= 150
    assert len({repr(each) for each in HOSTILE}) == len(HOSTILE)
    wrong = {}
    for each in HOSTILE:
        internet = FakeInternet(names=each.names, routes=each.routes)
        try:
            outcome = asyncio.run(visit(internet, certificate, each.url, each.use))
        except Refused as refused:
            outcome = refused.error
        if outcome is not UrlRefused or not set(internet.connected) <= {PUBLIC}:
            wrong[each.url] = outcome, internet.connected
    assert wrong == {}


def test_legitimate_urls_pass_as_they_are(certificate):
    assert len(LEGITIMATE) >= 25
    wrong = {}
    for each in LEGITIMATE:
        names = {name: list(each.addresses) for name in each.names}
        internet = FakeInternet(names=names, routes=each.routes)
        try:
            outcome = asyncio.run(visit(internet, certificate, each.url, each.use))
        except Refused as refused:
            outcome = refused
        if outcome != each.path.encode():
            wrong[each.url] = outcome, internet.connected
    assert wrong == {}


@pytest.mark.parametrize(
    ("addresses", "refused"), [([PUBLIC], False), ([PUBLIC, "10.0.0.1"], True), (["::1"], True)]
)
def test_host_is_checked_without_a_connection(addresses, refused):
    internet = FakeInternet(names={"put.example": addresses})
    targets = Targets()

    async def check():
        client = GuardedClient(targets, look_up=internet.look_up, make_socket=internet.make_socket)
        try:
            await client.check(targets.parse("https://put.example/a.png", Use.WRITE))
        except Refused as exc:
            return exc.error is UrlRefused
        finally:
            client.close()
        return False

    assert asyncio.run(check()) is refused
    assert internet.connected == []


@pytest.mark.parametrize("host", ["10.0.0.1", "::1"])
def test_socket_is_checked_even_if_the_url_was_not(host):
    """Two checks come before it. It is the one that nothing passes by."""
    internet = FakeInternet()
    url = f"http://{f'[{host}]' if ':' in host else host}/"
    target = Target(use=Use.READ, scheme="http", host=host, port=80, url=url)

    async def run():
        client = GuardedClient(Targets(), make_socket=internet.make_socket)
        try:
            await client.read(target, LIMITS, join)
        finally:
            client.close()

    with pytest.raises(Refused) as caught:
        asyncio.run(run())
    assert (caught.value.error, internet.connected) == (UrlRefused, [])


def opened(*entries, **settings):
    return Targets(opened=tuple(map(parse_opened, entries)), **settings)


def run_against(serve, handler, *, limits=LIMITS, for_use=Use.READ, path="/a.png", take=join):
    """Read from, or write to, a server of this machine; returns the outcome, also a Refused."""

    async def run():
        async with serve(handler) as port:
            targets = opened(f"{for_use}:127.0.0.1:{port}")
            client = GuardedClient(targets, retry_waits_s=(0.01, 0.01))
            target = targets.parse(f"http://127.0.0.1:{port}{path}", for_use)
            try:
                if for_use is Use.READ:
                    return await client.read(target, limits, take)
                return await client.write("PUT", target, b"ab", {}, total_s=limits.total_s)
            except Refused as refused:
                return refused
            finally:
                client.close()

    return asyncio.run(run())


class Calls:
    """A handler that answers each call with the next of its answers, then with the last."""

    def __init__(self, *answers):
        self._answers = answers
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if isinstance(answer, int):
            return web.Response(status=answer, text=str(answer))
        return answer(request)


def redirect(location, status=302):
    headers = {} if location is None else {"Location": location}
    return lambda request: web.Response(status=status, headers=headers)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_read_is_tried_three_times_while_the_status_may_change(status):
    calls = Calls(status, status, 200)
    assert run_against(local_server, calls) == b"200"
    calls = Calls(status)
    refused = run_against(local_server, calls)
    assert (refused.error, len(calls.requests)) == (FetchUnavailable, 3)
    assert refused.value == f"127.0.0.1: HTTP status {status}"


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410])
def test_read_is_tried_once_if_the_status_is_final(status):
    calls = Calls(status)
    refused = run_against(local_server, calls)
    assert (refused.error, len(calls.requests)) == (FetchFailed, 1)


class Raw:
    """A server that sends bytes after the request, with a pause after each part."""

    def __init__(self, *parts, wait_s=0.0, then=None):
        self._parts = parts
        self._wait_s = wait_s
        self._then = then
        self.num_calls = 0

    async def __call__(self, reader, writer):
        self.num_calls += 1
        await reader.readuntil(b"\r\n\r\n")
        try:
            for part in self._parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(self._wait_s)
            while self._then:
                writer.write(self._then)
                await writer.drain()
                await asyncio.sleep(self._wait_s)
        except ConnectionError:
            pass


class Reset(Raw):
    """A server that resets the connection after the request."""

    async def __call__(self, reader, writer):
        self.num_calls += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()


def test_connection_that_breaks_is_tried_again_and_unavailable_in_the_end():
    for handler in (
        Reset(),
        Raw(),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
    ):
        refused = run_against(raw_server, handler)
        assert (refused.error, handler.num_calls) == (FetchUnavailable, 3)


def test_body_that_breaks_once_is_read_from_its_beginning():
    calls = [Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")]
    calls.append(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"))

    async def handle(reader, writer):
        await (calls.pop(0) if len(calls) > 1 else calls[0])(reader, writer)

    assert run_against(raw_server, handle) == b"abcde"


def test_port_where_nobody_listens_is_unavailable():
    targets = opened("127.0.0.1:1")

    async def run():
        client = GuardedClient(targets, retry_waits_s=(0, 0))
        try:
            await client.read(targets.parse("http://127.0.0.1:1/", Use.READ), LIMITS, join)
        finally:
            client.close()

    with pytest.raises(Refused) as caught:
        asyncio.run(run())
    assert caught.value.error is FetchUnavailable


@pytest.mark.parametrize(
    "parts",
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n",),
        (b"HTTP/1.1 abc\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nA" + b"x" * 20_000 + b": 1\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * 200_000,),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",),
        (b"\x15\x03\x01\x00\x02\x02\x28",),
    ],
)
def test_answer_that_is_no_http_has_a_code(parts):
    refused = run_against(raw_server, Raw(*parts))
    assert refused.error in (FetchFailed, FetchUnavailable)


def test_time_covers_all_tries_and_a_body_that_drips():
    limits = ReadLimits(max_bytes=1_000_000, total_s=0.6, too_large=ImageRefused)
    begin = b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n"
    for handler in (
        Raw(begin, wait_s=0.05, then=b"a"),
        Raw(wait_s=0.05, then=b"HTTP/1.1 100 Continue\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\n", wait_s=0.05, then=b"A: 1\r\n"),
        Raw(b"", wait_s=30),
    ):
        started = time.monotonic()
        refused = run_against(raw_server, handler, limits=limits)
        assert refused.error is FetchUnavailable
        assert refused.accepted == "a complete answer within 0.6 s"
        assert 0.5 < time.monotonic() - started < 5


@pytest.mark.parametrize("head", [b"Content-Length: 1000001\r\n", b"Connection: close\r\n"])
def test_body_that_is_too_long_ends_at_the_limit(head):
    refused = run_against(
        raw_server, Raw(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", then=b"a" * 65_536)
    )
    assert refused.error is ImageRefused
    assert refused.accepted == "a file of at most 1000000 bytes"


def test_compressed_body_counts_as_what_it_becomes():
    bomb = gzip.compress(bytes(300_000_000), 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    seen = []

    async def count(blocks):
        async for block in blocks:
            seen.append(len(block))

    refused = run_against(raw_server, Raw(head.encode(), bomb), take=count)
    assert refused.error is ImageRefused
    assert sum(seen) <= LIMITS.max_bytes
    small = gzip.compress(b"abc")
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(small)}\r\n\r\n"
    assert run_against(raw_server, Raw(head.encode(), small)) == b"abc"


def test_damaged_compression_has_a_code():
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    assert run_against(raw_server, Raw(head, b"abcde")).error is FetchUnavailable


def test_reading_follows_five_redirects_and_no_more():
    def steps(num):
        return Calls(*[redirect(f"/{n}", 301 + n % 2) for n in range(num)], 200)

    assert run_against(local_server, steps(5)) == b"200"
    refused = run_against(local_server, steps(6))
    assert (refused.error, refused.accepted) == (UrlRefused, "at most 5 redirects")
    assert run_against(local_server, Calls(redirect(None), 200)).error is FetchFailed


def test_redirect_to_a_port_that_is_not_opened_is_refused():
    calls = Calls(redirect("http://127.0.0.1:1/"))
    assert run_against(local_server, calls).error is UrlRefused


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_writing_follows_no_redirect(status):
    calls = Calls(redirect("/elsewhere", status))
    answer = run_against(local_server, calls, for_use=Use.WRITE)
    assert (answer.status, len(calls.requests)) == (status, 1)


def test_write_sends_the_same_body_again_and_returns_the_last_answer():
    bodies = []

    async def handle(request):
        bodies.append((request.method, await request.read(), request.headers.get("Content-Type")))
        return web.Response(status=503 if len(bodies) < 3 else 200, text="stored")

    answer = run_against(local_server, handle, for_use=Use.WRITE)
    assert (answer.status, answer.body) == (200, b"stored")
    assert bodies == [("PUT", b"ab", None)] * 3
    answer = run_against(local_server, Calls(503), for_use=Use.WEBHOOK)
    assert (answer.status, answer.body) == (503, b"503")
    assert run_against(raw_server, Reset(), for_use=Use.WRITE).error is FetchUnavailable


def test_answer_to_a_write_is_read_up_to_its_limit():
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    answer = run_against(raw_server, Raw(head, then=b"a" * 65_536), for_use=Use.WRITE)
    assert (answer.status, len(answer.body)) == (200, MAX_ANSWER_BYTES)
    dripping = Raw(b"HTTP/1.1 200 OK\r\n\r\n", wait_s=0.05, then=b"a")
    answer = run_against(raw_server, dripping, for_use=Use.WRITE)
    assert (answer.status, set(answer.body), dripping.num_calls) == (200, {ord("a")}, 1)
    broken = Raw(b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\nab")
    assert run_against(raw_server, broken, for_use=Use.WRITE).status == 201


def test_requests_carry_nothing_of_ours(monkeypatch, tmp_path):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    def give_cookie(request):
        response = redirect("/next")(request)
        response.set_cookie("a", "b")
        return response

    calls = Calls(give_cookie, 200)
    assert run_against(local_server, calls, path="/?sig=secret") == b"200"
    for request in calls.requests:
        assert set(request.headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"} | (
            set(request.headers) & {"Connection"}
        )
        assert "hidden" not in str(request.headers)
    assert "Referer" not in calls.requests[1].headers


class FailingInternet(FakeInternet):
    """Name servers that fail."""

    def __init__(self, number):
        super().__init__()
        self._number = number

    def look_up(self, host, port):
        raise socket.gaierror(self._number, "no")


def test_name_without_an_address_and_name_server_that_fails_have_their_codes(certificate):
    for number, error in (
        (socket.EAI_NONAME, FetchFailed),
        (socket.EAI_AGAIN, FetchUnavailable),
    ):
        internet = FailingInternet(number)
        with pytest.raises(Refused) as caught:
            asyncio.run(visit(internet, certificate, "https://example.org/", Use.READ))
        assert (caught.value.error, internet.connected) == (error, [])


def test_certificate_of_another_host_is_refused(certificate):
    internet = FakeInternet(names={"other.example": [PUBLIC]})
    with pytest.raises(Refused) as caught:
        asyncio.run(visit(internet, certificate, "https://other.example/", Use.READ))
    assert caught.value.error is FetchFailed
    assert caught.value.accepted == "a host with a valid certificate"


def test_slow_name_servers_do_not_outlast_the_time(certificate):
    def look_up(host, port):
        time.sleep(1)
        return []

    async def run():
        targets = Targets()
        client = GuardedClient(targets, look_up=look_up)
        limits = ReadLimits(max_bytes=10, total_s=0.2, too_large=ImageRefused)
        started = time.monotonic()
        try:
            await client.read(targets.parse("https://slow.example/", Use.READ), limits, join)
        finally:
            client.close()
            took.append(time.monotonic() - started)

    took: list[float] = []
    with pytest.raises(Refused) as caught:
        asyncio.run(run())
    assert caught.value.error is FetchUnavailable
    assert took[0] < 0.9


def test_slow_name_servers_leave_the_threads_of_the_event_loop_alone():
    def look_up(host, port):
        time.sleep(0.5)
        raise socket.gaierror(socket.EAI_NONAME, "no")

    async def run():
        targets = Targets()
        client = GuardedClient(targets, look_up=look_up)
        target = targets.parse("https://slow.example/", Use.READ)
        reads = [asyncio.create_task(client.read(target, LIMITS, join)) for _ in range(40)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await asyncio.to_thread(int)
        took = time.monotonic() - started
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        client.close()
        return took

    assert asyncio.run(run()) < 0.3


def test_refusals_and_logs_name_the_host_but_not_the_query(caplog):
    caplog.set_level(logging.DEBUG)
    for calls in (Calls(404), Calls(redirect("http://10.0.0.1/?token=secret")), Calls(500)):
        refused = run_against(local_server, calls, path="/a?token=secret")
        assert "secret" not in f"{refused} {refused.problem('image')}"
        assert refused.value.startswith(("127.0.0.1", "10.0.0.1"))
    ours = [record for record in caplog.records if record.name.startswith("pixpod")]
    assert not [record for record in ours if "secret" in record.getMessage()]
