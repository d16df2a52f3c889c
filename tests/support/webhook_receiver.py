"""An HTTP server of this machine that receives webhooks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pixpod_client import Event, WebhookRefused, verify


@dataclass(slots=True, kw_only=True)
class WebhookReceiver:
    """Keeps the events that arrive with a signature by `secret`; `num_refused` are the others."""

    url: str
    secret: str = field(repr=False)
    events: list[Event] = field(default_factory=list)
    num_refused: int = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        receiver = self.server.receiver
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its sender has gone
            self.close_connection = True
            return
        try:
            receiver.events.append(verify(body, dict(self.headers), receiver.secret))
        except WebhookRefused:
            receiver.num_refused += 1
            status = 400
        else:
            status = 204
        self.send_response_only(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    receiver: WebhookReceiver


@contextmanager
def running_receiver(secret: str) -> Iterator[WebhookReceiver]:
    """A receiver on a free port of the loopback interface."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        server.receiver = WebhookReceiver(url=url, secret=secret)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.receiver
        finally:
            server.shutdown()
            thread.join()
