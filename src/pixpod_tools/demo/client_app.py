"""The app of a customer, which keeps the events that the platform posts to its webhook."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ClientApp(ThreadingHTTPServer):
    """A server that puts each event into `events`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Webhook)
        self.url = f"http://127.0.0.1:{self.server_port}/runpod"
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()


class _Webhook(BaseHTTPRequestHandler):
    server: ClientApp

    def do_POST(self) -> None:
        self.server.events.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the demo reports the events."""


@contextmanager
def running_client_app() -> Iterator[ClientApp]:
    app = ClientApp()
    thread = threading.Thread(target=app.serve_forever)
    thread.start()
    try:
        yield app
    finally:
        app.shutdown()
        thread.join()
        app.server_close()
