"""Each fault of a place, for each way of delivery, against a real S3 server behind a proxy.

`docs/delivery.md` has the same table.
"""

import asyncio
import base64
import hashlib
import logging
import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import SecretStr
from support.factories import OFFER, make_job
from support.faulty_proxy import Fault, running_proxy

from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets, parse_opened
from pixpod.job import Delivery
from pixpod.outputs.caller_stores import CallerStores
from pixpod.outputs.s3_storage import S3ImageStore
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.refresh import Refresh
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine

pytest_plugins = ["integration.s3_servers"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "delivery.md"
DEADLINE_S = 1.2
ALWAYS = 20
WAYS = ("put_urls", "s3Config", "s3")


@dataclass(frozen=True)
class Row:
    """A fault and what becomes of the image by each of WAYS: where it is, or the job's error."""

    name: str
    outcomes: tuple[str, str, str]
    faults: tuple[Fault, ...] = ()
    changes: tuple[str, ...] = ()


def once(name, fault, *outcomes):
    return Row(name, outcomes or ("its place",) * 3, (fault,))


def always(name, fault):
    return Row(name, ("bucket", "bucket", "reply"), (fault,) * ALWAYS)


def changed(name, change, *outcomes):
    return Row(name, outcomes or ("bucket", "bucket", "reply"), changes=(change,))


ROWS = (
    Row("none", ("its place",) * 3),
    once("HTTP 429, once", Fault.TOO_MANY_REQUESTS),
    once("HTTP 500, once", Fault.INTERNAL_ERROR),
    once("HTTP 503, once", Fault.OVERLOADED),
    once("connection closed before the answer, once", Fault.DROP),
    once("stored, but the answer is lost, once", Fault.LOSE_ANSWER),
    once("damaged on the way, once", Fault.DAMAGE, "bucket", "bucket", "its place"),
    changed("connection refused", "port"),
    always("connection closed before the answer", Fault.DROP),
    always("no answer", Fault.STALL),
    always("HTTP 400", Fault.BAD_REQUEST),
    always("HTTP 403", Fault.FORBIDDEN),
    always("HTTP 404", Fault.MISSING),
    always("HTTP 409", Fault.CONFLICT),
    always("HTTP 429", Fault.TOO_MANY_REQUESTS),
    always("HTTP 500", Fault.INTERNAL_ERROR),
    always("HTTP 503", Fault.OVERLOADED),
    always("redirect", Fault.REDIRECT),
    changed("wrong secret", "secret"),
    changed("missing bucket", "bucket"),
    changed("expired URL", "expiry", "put_refused", "-", "-"),
)
CELLS = [
    pytest.param(row, way, outcome, id=f"{row.name}-{way}")
    for row in ROWS
    for way, outcome in zip(WAYS, row.outcomes, strict=True)
    if outcome != "-"
]


class Stage:
    """A server behind a proxy as the place that fails, and a second bucket without a fault."""

    def __init__(self, server, good_bucket, proxy, row):
        changes = set(row.changes)
        self.good_bucket = good_bucket
        self.server = server
        self.proxy = proxy
        self.endpoint_url = f"http://127.0.0.1:{closed_port()}" if "port" in changes else proxy.url
        self.secret = "wrong-secret" if "secret" in changes else server.secret_access_key
        self.bucket = "missing" if "bucket" in changes else server.bucket
        self.lifetime_s = 1 if "expiry" in changes else 600
        proxy.faults += row.faults

    def put_url(self, key="put.png"):
        request = AWSRequest("PUT", f"{self.endpoint_url}/{self.bucket}/{key}")
        credentials = Credentials(self.server.access_key_id, self.secret)
        signing = S3SigV4QueryAuth(credentials, "s3", "us-east-1", expires=self.lifetime_s)
        signing.add_auth(request)
        return str(request.url)

    def s3_config(self):
        return {
            "endpointUrl": self.endpoint_url,
            "bucketName": self.bucket,
            "accessId": self.server.access_key_id,
            "accessSecret": self.secret,
            "objectPath": "mine",
        }

    def job(self, way):
        if way == "put_urls":
            return make_job(output={"put_urls": [self.put_url()]})
        return make_job() | ({"s3Config": self.s3_config()} if way == "s3Config" else {})

    def bucket_of_deployment(self, way):
        """Return the place that fails, or one that works."""
        if way != "s3":
            return self.good_bucket
        settings = self.server.settings(
            endpoint_url=self.endpoint_url,
            bucket=self.bucket,
            secret_access_key=SecretStr(self.secret),
        )
        return S3ImageStore(settings, read_timeout_s=1)

    def worker(self, way):
        target = parse_opened(f"write:{self.endpoint_url.removeprefix('http://')}")
        targets = Targets(opened=(target,))
        bucket = self.bucket_of_deployment(way)
        return Worker(
            capabilities=replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE), targets=targets),
            engine=FakeEngine(),
            delivery=ImageDelivery(
                stores={Delivery.S3: bucket, Delivery.INLINE: InlineImageStore()},
                key_prefix="deployment",
                key_secret=SecretStr("hidden"),
                max_reply_bytes=10_000_000,
                callers=CallerStores(GuardedClient(targets, retry_waits_s=(0.1, 0.2)), targets),
                total_s=DEADLINE_S,
            ),
            usd_per_gpu_second=None,
            concurrency=Concurrency(max_when_warm=1, is_warm=lambda: True, num_taken=lambda: 1),
            refresh=Refresh(after_images=0),
            intake=Intake(GuardedClient(Targets())),
            platform=None,
            worker_id="pod-1",
            max_job_s=60,
        )

    def where(self, way, image):
        """Return where the image of a reply is, by the bytes that are there."""
        if "data" in image:
            place, data = "reply", base64.b64decode(image["data"])
        elif way == "put_urls" and "key" not in image:
            place, data = "its place", self.server.get("put.png")["Body"]
        else:
            is_callers = way == "s3Config" and image["key"].startswith("mine/")
            place = "its place" if is_callers or way == "s3" else "bucket"
            data = self.server.get(image["key"])["Body"]
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        return place


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def good_bucket(juicefs):
    return S3ImageStore(juicefs.settings())


@pytest.fixture
def set_stage(juicefs, good_bucket):
    with ExitStack() as stack:

        def start(row):
            proxy = stack.enter_context(running_proxy(juicefs.endpoint_url))
            return Stage(juicefs, good_bucket, proxy, row)

        yield start


@pytest.mark.parametrize(("row", "way", "outcome"), CELLS)
def test_each_fault_of_each_way(set_stage, caplog, row, way, outcome):
    caplog.set_level(logging.INFO)
    stage = set_stage(row)
    job = stage.job(way)
    if "expiry" in row.changes:
        assert expired(stage, way, job) == outcome
        return
    reply = asyncio.run(stage.worker(way).handle(job))
    assert "error" not in reply, reply
    assert stage.where(way, reply["images"][0]) == outcome
    assert len(reply["warnings"]) == (outcome != "its place")
    assert caplog.text.count("images not delivered") == (outcome != "its place")
    for secret in (stage.secret, "Signature", "put.png"):
        assert secret not in caplog.text


def expired(stage, way, job):
    reply = asyncio.run(stage.worker(way).handle(job))
    assert stage.proxy.seen == [], "it is refused before the GPU works"
    return reply["error"].partition(":")[0]


@pytest.mark.parametrize("way", ["put_urls", "s3Config"])
@pytest.mark.parametrize("fault", [Fault.BAD_REQUEST, Fault.FORBIDDEN, Fault.CONFLICT])
def test_what_cannot_succeed_is_tried_once(set_stage, way, fault):
    stage = set_stage(always("", fault))
    asyncio.run(stage.worker(way).handle(stage.job(way)))
    assert len(stage.proxy.seen) == 1


def test_table_of_the_page_is_this_one():
    lines = re.findall(r"^\| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [tuple(line.split(" | ")) for line in lines]
    assert [row for row in rows if len(row) == 4 and row[0] in {each.name for each in ROWS}] == [
        (row.name, *(outcome.replace("its place", "delivered") for outcome in row.outcomes))
        for row in ROWS
    ]
