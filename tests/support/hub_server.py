"""A model hub on the loopback interface: enough of its protocol to list and download."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

TOKEN = "hf_of_an_account_that_accepted"
SIGNATURE = "signed-by-the-cdn"
"""In the links to large files; must never be seen in a log."""


@dataclass(slots=True, kw_only=True)
class Repository:
    """Files of one commit. A gated one is read with TOKEN only.

    Files that end with .safetensors are large: stored as LFS and served by redirect.
    """

    revision: str
    files: Mapping[str, bytes]
    is_gated: bool = False

    @classmethod
    def of_folder(cls, folder: Path, revision: str, **options: bool) -> "Repository":
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for parent, _, names in walk(folder)
            for path in (parent / name for name in names)
        }
        return cls(revision=revision, files=files, **options)


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Path.walk is of Python 3.12. Follows links, as model_cache has them."""
    entries = sorted(folder.iterdir())
    folders = [each for each in entries if each.is_dir()]
    yield (
        folder,
        [each.name for each in folders],
        [each.name for each in entries if each.is_file()],
    )
    for each in folders:
        yield from walk(each)


@dataclass(slots=True, kw_only=True)
class HubServer:
    """`breaks` maps a path to the byte counts after which its next downloads break off, `damaged`
    are files of which one byte comes wrong; `status` is what everything is answered with if set.
    `downloads` has path and first byte of each download, in the order of their begin.
    """

    url: str
    repositories: dict[str, Repository]
    breaks: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    status: int | None = None
    are_links_expired: bool = False
    downloads: list[tuple[str, int]] = field(default_factory=list)
    bytes_sent: Counter[str] = field(default_factory=Counter)


@contextmanager
def running_hub(repositories: Mapping[str, Repository]) -> Iterator[HubServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = HubServer(
        url=f"http://127.0.0.1:{server.server_address[1]}", repositories=dict(repositories)
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def etag_of(path: str, data: bytes) -> str:
    """What the hub knows a file by: sha256 if it is large, else the id of git's blob."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    ROUTES: ClassVar = {
        "_info": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)"),
        "_tree": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
        "_resolve": re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
        "_cdn": re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<path>.+)"),
    }

    def do_GET(self) -> None:
        if self.server.hub.status is not None:
            self._error(self.server.hub.status)
            return
        path = unquote(urlsplit(self.path).path)
        for name, route in self.ROUTES.items():
            if found := route.fullmatch(path):
                getattr(self, name)(**found.groupdict())
                return
        self._error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _info(self, repo: str) -> None:
        repository = self.server.hub.repositories.get(repo)
        if repository is None:
            self._error(401, "RepoNotFound")
            return
        info = json.dumps({"id": repo, "sha": repository.revision}).encode()
        self._reply(200, {"Content-Type": "application/json"}, info)

    def _tree(self, repo: str, revision: str) -> None:
        """The hub lists gated repositories to everybody."""
        repository = self._find(repo, revision)
        if repository is not None:
            entries = [_entry(path, data) for path, data in repository.files.items()]
            self._reply(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self._find(repo, revision)
        if repository is None:
            return
        if repository.is_gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._error(403 if self.headers["Authorization"] else 401, "GatedRepo")
            return
        if path not in repository.files:
            self._error(404, "EntryNotFound")
            return
        data = repository.files[path]
        known = {"X-Repo-Commit": revision, "ETag": f'"{etag_of(path, data)}"'}
        if not is_large(path):
            self._send_file(path, data, known)
            return
        port = self.server.server_address[1]
        link = f"http://localhost:{port}/cdn/{repo}/{quote(path)}?signature={SIGNATURE}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": known["ETag"]}
        self._reply(302, known | linked | {"Location": link}, b"")

    def _cdn(self, repo: str, path: str) -> None:
        if self.server.hub.are_links_expired:
            self._error(403)
            return
        self._send_file(path, self.server.hub.repositories[repo].files[path], {})

    def _find(self, repo: str, revision: str) -> Repository | None:
        authorization = self.headers["Authorization"]
        if authorization not in (None, f"Bearer {TOKEN}", "Bearer hf_of_another_account"):
            self._error(401, message="Invalid credentials in Authorization header")
            return None
        repository = self.server.hub.repositories.get(repo)
        if repository is None:
            self._error(404 if authorization else 401, "RepoNotFound")
        elif repository.revision != revision:
            self._error(404, "RevisionNotFound")
            return None
        return repository

    def _send_file(self, path: str, data: bytes, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        if path in hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[first:]
        if self.command == "HEAD":
            self._reply(200, headers, body)
            return
        hub.downloads.append((path, first))
        cuts = hub.breaks.get(path)
        sent = body[: cuts.pop(0)] if cuts else body
        hub.bytes_sent[path] += len(sent)
        span = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if asked else {}
        self._reply(206 if asked else 200, {**headers, **span}, sent, announced=len(body))
        self.close_connection = len(sent) < len(body)

    def _error(self, status: int, code: str | None = None, message: str = "no") -> None:
        named = {"X-Error-Code": code} if code else {}
        self._reply(status, {**named, "X-Error-Message": message}, b"{}")

    def _reply(
        self, status: int, headers: Mapping[str, str], body: bytes, announced: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest() if is_large(path) else etag_of(path, data),
    }
    if is_large(path):
        entry["lfs"] = {"oid": etag_of(path, data), "size": len(data), "pointerSize": 134}
    return entry
