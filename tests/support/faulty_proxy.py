"""An HTTP proxy in front of a server on this machine that can answer wrongly, drop or stall."""

import http.client
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

SLOW_S = 0.3
SLOW_PARTS = 6
"""Seconds that a slow request takes, and the parts in which its body is read."""

DRIP_S = 0.05
RECEIVE_BUFFER_BYTES = 4096
"""Small, so that a client is still sending when a fault meets its body."""


class Fault(StrEnum):
    """What happens to a request instead of being forwarded."""

    BAD_REQUEST = "answer 400"
    FORBIDDEN = "answer 403"
    MISSING = "answer 404"
    CONFLICT = "answer 409"
    TOO_MANY_REQUESTS = "answer 429"
    INTERNAL_ERROR = "answer 500"
    OVERLOADED = "answer 503"
    REDIRECT = "answer 307"
    DROP = "close the connection without an answer"
    RESET_BEFORE_BODY = "reset the connection before its body is read"
    RESET_IN_BODY = "reset the connection after the first bytes of the body"
    CUT = "forward the first bytes of the body and close both connections"
    SLOW = "read the body slowly, and forward the request"
    DRIP = "forward the request and answer byte by byte"
    STALL = "keep the connection open without an answer"
    LOSE_ANSWER = "forward the request and close the connection"
    DAMAGE = "forward the request with another first byte of its body"

    @property
    def status(self) -> int | None:
        return int(self.removeprefix("answer ")) if self.startswith("answer ") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    fault: Fault | None


@dataclass(slots=True, kw_only=True)
class FaultyProxy:
    """`faults` are used up one per request; then requests reach the server behind.

    Only requests whose method is `faulty_method` meet them, if that is set. While `outage` is set,
    every request meets it.
    """

    url: str
    behind: str
    faults: list[Fault] = field(default_factory=list)
    faulty_method: str | None = None
    outage: Fault | None = None
    seen: list[SeenRequest] = field(default_factory=list)
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: "_Handler") -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        fault = self.outage or self._next_fault(request.command)
        self.seen.append(
            SeenRequest(method=request.command, path=request.path, headers=headers, fault=fault)
        )
        length = int(headers.get("content-length", 0))
        match fault:
            case Fault.RESET_BEFORE_BODY:
                request.reset()
            case Fault.RESET_IN_BODY:
                request.rfile.read(length // 2)
                request.reset()
            case Fault.CUT:
                self._forward_part(request, headers, request.rfile.read(length // 2))
                request.close_connection = True
            case Fault.SLOW:
                part = length // SLOW_PARTS + 1
                body = b""
                while len(body) < length:
                    body += request.rfile.read(min(part, length - len(body)))
                    time.sleep(SLOW_S / SLOW_PARTS)
                self._forward(request, headers, body)
            case _:
                self._answer(fault, request, headers, request.rfile.read(length))

    def _answer(
        self, fault: Fault | None, request: "_Handler", headers: dict[str, str], body: bytes
    ) -> None:
        """Answer a request whose whole body has been read."""
        match fault:
            case Fault.LOSE_ANSWER:
                self._forward(request, headers, body, is_answered=False)
                request.close_connection = True
            case Fault.DRIP:
                request.wfile = _Dripping(request.wfile, self._closing)
                self._forward(request, headers, body)
                request.close_connection = True
            case Fault.DAMAGE:
                self._forward(request, headers, b"\0" + body[1:])
            case Fault(status=int(status)):
                answer = {"content-type": "text/html", "location": f"{self.url}/elsewhere"}
                request.reply(status, answer, b"<h1>bad gateway</h1>")
            case Fault.DROP:
                request.close_connection = True
            case Fault.STALL:
                self._closing.wait()
                request.close_connection = True
            case None:
                self._forward(request, headers, body)

    def _next_fault(self, method: str) -> Fault | None:
        with self._lock:
            is_faulty = self.faulty_method in (None, method)
            return self.faults.pop(0) if self.faults and is_faulty else None

    def _forward(
        self,
        request: "_Handler",
        headers: dict[str, str],
        body: bytes,
        *,
        is_answered: bool = True,
    ) -> None:
        headers.pop("expect", None)
        connection = http.client.HTTPConnection(urlsplit(self.behind).netloc, timeout=10)
        try:
            # The host of the client's request stays: it is part of what the client signed.
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            if is_answered:
                request.reply(response.status, dict(response.getheaders()), content)
        finally:
            connection.close()

    def _forward_part(self, request: "_Handler", headers: dict[str, str], part: bytes) -> None:
        """Send the beginning of a body whose whole length is announced, and no more."""
        headers.pop("expect", None)
        connection = http.client.HTTPConnection(urlsplit(self.behind).netloc, timeout=10)
        try:
            connection.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(part)
        finally:
            connection.close()

    def stop_stalling(self) -> None:
        self._closing.set()


class _Dripping(io.BufferedIOBase):
    """A file for writing that sends one byte every DRIP_S until `end` is set."""

    def __init__(self, file: io.BufferedIOBase, end: threading.Event) -> None:
        self._file = file
        self._end = end

    def write(self, data: "Buffer") -> int:
        for byte in bytes(data):
            if not self._end.wait(DRIP_S):
                self._file.write(bytes([byte]))
        return len(bytes(data))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _answer(self) -> None:
        self.server.proxy.answer(self)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def reset(self) -> None:
        """Close the connection in a way that its other end gets ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer; to a HEAD without the body, whose length is in `headers`."""
        length = str(len(body))
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up waiting is what some tests are about."""


@contextmanager
def running_proxy(behind: str) -> Iterator[FaultyProxy]:
    """A proxy on a free port of the loopback interface, in front of the server at `behind`."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        server.proxy = FaultyProxy(url=f"http://127.0.0.1:{server.server_port}", behind=behind)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            server.proxy.stop_stalling()
            server.shutdown()
            thread.join()
