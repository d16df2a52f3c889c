"""The HTTP client for URLs that callers name.

Each address is checked where its socket is made. The socket's factory gets the numeric address, so
names, literals, redirects and changed answers of name servers all pass the same check. No proxy, no
cookies, no netrc and no credentials of ours are used.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pixpod import __version__
from pixpod.errors import FetchFailed, FetchUnavailable, PayloadError, UrlRefused
from pixpod.inputs.addresses import parse_address
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target, Targets, Use

T = TypeVar("T")

MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 64 * 1024
ANSWER_S = 1.0
"""Limits of the body of an answer to a write: the rest is not read."""

RETRY_WAITS_S = (0.5, 1.0)
CONNECT_TIMEOUT_S = 5.0
"""For one address. A host may have several, and one that does not answer must not use all time."""

LOOK_UP_THREADS = 4
BLOCK_BYTES = 64 * 1024

_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_MODIFIED = 304
_HEADERS = {
    "User-Agent": f"pixpod/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}

LookUp = Callable[[str, int], Sequence[aiohttp.AddrInfoType]]
Take = Callable[[AsyncIterator[bytes]], Awaitable[T]]
"""Takes the blocks of a body. It is called once more for each further try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """Limits of one download: bytes after decompression, seconds for all tries and redirects.

    A longer body is refused with `too_large`.
    """

    max_bytes: int
    total_s: float
    too_large: type[PayloadError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a write, whatever its status. `body` has MAX_ANSWER_BYTES at most."""

    status: int
    body: bytes = field(repr=False)


def look_up(host: str, port: int) -> Sequence[aiohttp.AddrInfoType]:
    """Return all addresses of a host. Raises OSError."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def make_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Return a new socket for an address."""
    family, kind, protocol, _, _ = info
    return socket.socket(family, kind, protocol)


class GuardedClient:
    """Reads from and writes to targets, as far as `targets` permits.

    Errors are Refused: with UrlRefused if a rule forbids an address, with FetchFailed if another
    try cannot help, and with FetchUnavailable if it may. Close it in the end.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        look_up: LookUp = look_up,
        make_socket: aiohttp.SocketFactoryType = make_socket,
        tls: ssl.SSLContext | None = None,
        retry_waits_s: Sequence[float] = RETRY_WAITS_S,
    ) -> None:
        self._targets = targets
        self._look_up = look_up
        self._make_socket = make_socket
        self._tls = tls
        self._retry_waits_s = retry_waits_s
        # name servers may be slow on purpose: their threads are not those of the event loop
        self._threads = ThreadPoolExecutor(LOOK_UP_THREADS, thread_name_prefix="look-up")

    def close(self) -> None:
        """Take no further calls. Look-ups that are in progress are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, target: Target, limits: ReadLimits, take: Take[T]) -> T:
        """Return what `take` makes of the body of a file. Raises Refused, also that of `take`."""
        found = await self.read_if_changed(target, limits, take, None)
        assert found is not None, "only a request with an ETag may be answered without a file"
        return found[0]

    async def read_if_changed(
        self, target: Target, limits: ReadLimits, take: Take[T], etag: str | None
    ) -> tuple[T, str | None] | None:
        """Return what `take` makes of a file, and its ETag if it has one.

        Returns None for a file whose ETag is still `etag`. Raises Refused, also that of `take`.
        """
        assert target.use is Use.READ
        return await self._within(
            limits.total_s, target, lambda: self._follow(target, limits, take, etag)
        )

    async def check(self, target: Target) -> None:
        """Look up the host of a target and check its addresses; nothing is connected.

        Raises Refused.
        """
        gate = _Gate(target, self._targets, self._look_up, self._threads, self._make_socket)
        await gate.resolve(target.host, target.port)

    async def write(
        self,
        method: str,
        target: Target,
        body: bytes,
        headers: Mapping[str, str],
        *,
        total_s: float,
    ) -> Answer:
        """Send a body and return the answer, also that of a redirect, which is not followed.

        A status of 429 or 5xx is returned if it is that of the last try. Raises Refused.
        """
        assert target.use is not Use.READ

        async def send() -> Answer:
            async with self._open(method, target, body, headers) as response:
                return Answer(status=response.status, body=await _beginning(response))

        def is_done(answer: Answer) -> bool:
            return not _may_change(answer.status)

        return await self._within(total_s, target, send, is_done)

    async def _within(
        self,
        total_s: float,
        target: Target,
        attempt: Callable[[], Awaitable[T]],
        is_done: Callable[[T], bool] = lambda result: True,
    ) -> T:
        """Try until it works, the tries are used up, or the time is over."""
        try:
            async with asyncio.timeout(total_s):
                for wait_s in self._retry_waits_s:
                    try:
                        if is_done(result := await attempt()):
                            return result
                    except Refused as refused:
                        if refused.error is not FetchUnavailable:
                            raise
                    await asyncio.sleep(wait_s)
                return await attempt()
        except TimeoutError as exc:
            accepted = f"a complete answer within {total_s:g} s"
            raise Refused(FetchUnavailable, accepted, value=target.host) from exc

    async def _follow(
        self, target: Target, limits: ReadLimits, take: Take[T], etag: str | None
    ) -> tuple[T, str | None] | None:
        headers = {} if etag is None else {"If-None-Match": etag}
        for _ in range(MAX_REDIRECTS + 1):
            async with self._open("GET", target, None, headers) as response:
                if etag is not None and response.status == _NOT_MODIFIED:
                    return None
                if response.status not in _REDIRECTS:
                    _check_status(response.status, target)
                    found = await take(_blocks(response, target, limits))
                    return found, response.headers.get("ETag")
                target = self._redirected(target, response.headers.get("Location"))
        raise Refused(UrlRefused, f"at most {MAX_REDIRECTS} redirects", value=target.host)

    def _redirected(self, target: Target, location: str | None) -> Target:
        if location is None:
            raise Refused(FetchFailed, "a redirect with a location", value=target.host)
        try:
            url = urljoin(target.url, location)
        except ValueError as exc:
            raise Refused(UrlRefused, "a redirect to a URL", value=target.host) from exc
        found = self._targets.parse(url, target.use)
        if (target.scheme, found.scheme) == ("https", "http"):
            raise Refused(UrlRefused, "no redirect from https to http", value=found.host)
        return found

    @asynccontextmanager
    async def _open(
        self, method: str, target: Target, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request on a connection of its own."""
        gate = _Gate(target, self._targets, self._look_up, self._threads, self._make_socket)
        connector = aiohttp.TCPConnector(
            resolver=gate,
            socket_factory=gate.make_socket,
            use_dns_cache=False,
            force_close=True,
            happy_eyeballs_delay=None,
            ssl=self._tls or True,
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        with _translated(target):
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=timeout,
                    trust_env=False,
                ) as session,
                session.request(
                    method,
                    URL(target.url, encoded=True),
                    data=body,
                    headers=_HEADERS | dict(headers),
                    skip_auto_headers=("Content-Type",),
                    allow_redirects=False,
                ) as response,
            ):
                yield response


class _Gate(AbstractResolver):
    """Look-ups and sockets of one request. A name with one forbidden address is refused.

    Each address gets one socket: aiohttp repeats requests by itself when a connection breaks, and
    the tries are ours to count.
    """

    def __init__(
        self,
        target: Target,
        targets: Targets,
        look_up: LookUp,
        threads: ThreadPoolExecutor,
        make_socket: aiohttp.SocketFactoryType,
    ) -> None:
        self._target = target
        self._targets = targets
        self._look_up = look_up
        self._threads = threads
        self._make_socket = make_socket
        self._used: set[object] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.run_in_executor(self._threads, self._look_up, host, port)
        except (OSError, UnicodeError) as exc:
            is_temporary = isinstance(exc, OSError) and exc.errno != socket.EAI_NONAME
            error = FetchUnavailable if is_temporary else FetchFailed
            raise Refused(error, "a host with an address", value=self._target.host) from exc
        for info in infos:
            self._check(info)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for family, _, protocol, _, address in infos
        ]

    def make_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        self._check(info)
        address = info[4]
        if address in self._used:
            raise _broken(self._target)
        self._used.add(address)
        return self._make_socket(info)

    async def close(self) -> None:
        """Leave the threads to the client."""

    def _check(self, info: aiohttp.AddrInfoType) -> None:
        self._targets.check(self._target, parse_address(str(info[4][0])))


@contextmanager
def _translated(target: Target) -> Iterator[None]:
    """Turn errors of aiohttp and of sockets into Refused."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as exc:
        raise Refused(FetchFailed, "a host with a valid certificate", value=target.host) from exc
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as exc:
        raise _broken(target) from exc
    except aiohttp.ClientError as exc:
        raise Refused(FetchFailed, "an answer in HTTP", value=target.host) from exc


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Return what arrives of a body. The status alone says what became of a write."""
    found = bytearray()
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(ANSWER_S):
            async for block in response.content.iter_chunked(BLOCK_BYTES):
                found += block
                if len(found) >= MAX_ANSWER_BYTES:
                    break
    return bytes(found[:MAX_ANSWER_BYTES])


def _broken(target: Target) -> Refused:
    return Refused(FetchUnavailable, "a host that answers completely", value=target.host)


def _may_change(status: int) -> bool:
    return status == 429 or status >= 500


def _check_status(status: int, target: Target) -> None:
    if status != 200:
        error = FetchUnavailable if _may_change(status) else FetchFailed
        raise Refused(error, "HTTP status 200", value=f"{target.host}: HTTP status {status}")


async def _blocks(
    response: aiohttp.ClientResponse, target: Target, limits: ReadLimits
) -> AsyncIterator[bytes]:
    too_large = Refused(
        limits.too_large, f"a file of at most {limits.max_bytes} bytes", value=target.host
    )
    if (response.content_length or 0) > limits.max_bytes:
        raise too_large
    num_bytes = 0
    async for block in response.content.iter_chunked(BLOCK_BYTES):
        num_bytes += len(block)
        if num_bytes > limits.max_bytes:
            raise too_large
        yield block
