"""The client against an emulated endpoint whose worker answers as pixpod does."""

import asyncio
import base64
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pixpod_client import (
    ApiError,
    AsyncClient,
    CallerError,
    Client,
    DownloadFailed,
    HostError,
    JobCancelled,
    JobFailed,
    JobTimedOut,
    Unreachable,
    WaitTimedOut,
)
from pixpod_client.job_errors import BY_CODE, InvalidInput, OutOfMemory, job_error
from runpod_emulator.behaviour import ExpiredInQueue
from runpod_emulator.testing import QUICK, running_emulator, settings_for

HANDLER = Path(__file__).parents[1] / "support" / "handlers" / "many_sided.py"
GOLDEN = Path(__file__).parents[1] / "golden"
FILE = b"the bytes of an image" * 10_000
REPLY = json.loads((GOLDEN / "reply_inline.json").read_text(encoding="utf-8"))
POLL_S = 0.05


def image(**place):
    described = {"seed": 1, "width": 8, "height": 8, "content_type": "image/png"}
    sha256 = hashlib.sha256(FILE).hexdigest()
    return {**described, "size_bytes": len(FILE), "sha256": sha256, **place}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("emulator")
    chosen = settings_for(
        HANDLER,
        state_dir,
        behaviour=replace(QUICK, min_ttl_s=0.1, expired_in_queue=ExpiredInQueue.TIMED_OUT),
        workers_min=1,
        workers_max=1,
        rate_limits=False,
    )
    (test,) = chosen.endpoints
    stuck = replace(test, id="stuck", workers_min=0, workers_max=0)
    with running_emulator(replace(chosen, endpoints=(test, stuck))) as emulator:
        yield emulator


@pytest.fixture
def client(emulator):
    with Client("test", emulator.api_key, base_url=emulator.base_url) as client:
        yield client
    emulator.clear_faults()


class Store(BaseHTTPRequestHandler):
    """Serves FILE, and other things by path; keeps the headers of requests."""

    seen: ClassVar[list] = []

    def do_GET(self):
        self.seen.append(dict(self.headers))
        content = {"/file": FILE, "/other": FILE[:-1] + b"x", "/long": FILE + b"x"}
        body = content.get(self.path.partition("?")[0])
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def store():
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def give(value):
    return {"do": "give", "value": value}


def test_reply_and_image_of_a_job(client):
    reply = client.wait(client.submit(give(REPLY)), poll_s=POLL_S)
    assert reply == REPLY
    (first, *_) = reply["images"]
    assert client.fetch(first) == base64.b64decode(first["data"])


def test_async_client(emulator):
    async def run():
        async with AsyncClient("test", emulator.api_key, base_url=emulator.base_url) as client:
            ids = [await client.submit(give({"number": number})) for number in range(3)]
            return await asyncio.gather(*(client.wait(each, poll_s=POLL_S) for each in ids))

    assert asyncio.run(run()) == [{"number": number} for number in range(3)]


def test_error_has_its_code_and_its_problems(client):
    text = json.loads((GOLDEN / "reply_invalid_input.json").read_text(encoding="utf-8"))["error"]
    job_id = client.submit(give({"error": text}))
    with pytest.raises(InvalidInput) as caught:
        client.wait(job_id, poll_s=POLL_S)
    assert isinstance(caught.value, CallerError)
    assert caught.value.code == "invalid_input"
    assert {problem["field"] for problem in caught.value.problems} >= {"width"}


def test_errors_by_code():
    assert isinstance(job_error("out_of_memory: the GPU has 1 GiB"), OutOfMemory)
    assert issubclass(OutOfMemory, HostError)
    assert all(error.code == code for code, error in BY_CODE.items())
    for text in ("job timed out after 1 retries", "", "new_code: {", "invalid"):
        error = job_error(text)
        assert (type(error), error.code, error.problems) == (JobFailed, None, [])
    for detail in ("[]", '{"problems": 1}', '{"problems": [1]}'):
        assert job_error(f"invalid_input: {detail}").problems == []


def test_cancelled_job(client, tmp_path):
    job_id = client.submit({"do": "hold", "until": str(tmp_path / "go")})
    client.cancel(job_id)
    with pytest.raises(JobCancelled):
        client.wait(job_id, poll_s=POLL_S)


def test_job_that_the_platform_ends(emulator):
    with Client("stuck", emulator.api_key, base_url=emulator.base_url) as client:
        job_id = client.submit({}, policy={"ttl": 100})
        with pytest.raises(JobTimedOut):
            client.wait(job_id, poll_s=POLL_S)


def test_job_that_is_not_over(client, tmp_path):
    job_id = client.submit({"do": "hold", "until": str(tmp_path / "go")})
    with pytest.raises(WaitTimedOut, match=r"after 0\.2 s"):
        client.wait(job_id, timeout_s=0.2, poll_s=POLL_S)
    client.cancel(job_id)


def test_wrong_key_and_wrong_endpoint(emulator):
    with Client("test", "wrong", base_url=emulator.base_url) as client:
        with pytest.raises(ApiError) as caught:
            client.submit({})
        assert caught.value.status == 401
    with (
        Client("none", emulator.api_key, base_url=emulator.base_url) as client,
        pytest.raises(ApiError, match="HTTP 404"),
    ):
        client.wait("job", poll_s=POLL_S)


def test_nobody_listens():
    with Client("test", "key", base_url="http://127.0.0.1:9/v2") as client:
        with pytest.raises(Unreachable):
            client.submit({})
        with pytest.raises(WaitTimedOut):
            client.wait("job", timeout_s=0.2, poll_s=POLL_S)


def test_link_is_fetched_without_the_api_key(client, store):
    assert client.fetch(image(url=f"{store}/file?signature=secret")) == FILE
    assert "Authorization" not in Store.seen[-1]


@pytest.mark.parametrize("path", ["other", "long", "missing"])
def test_what_is_not_the_image_is_refused(client, store, path):
    with pytest.raises(DownloadFailed) as caught:
        client.fetch(image(url=f"{store}/{path}?signature=secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        {"data": "$$$"},
        {"data": base64.b64encode(b"other").decode()},
        {"path": "/images/1.png"},
        {"key": "images/1.png"},
        {"url": "http://127.0.0.1:9/file"},
        {"url": "file:///etc/passwd"},
    ],
)
def test_image_that_cannot_be_fetched(client, place):
    with pytest.raises(DownloadFailed):
        client.fetch(image(**place))
