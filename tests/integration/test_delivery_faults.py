"""Each fault of a place, for each way of delivery, against a real S3 server behind a proxy.

`docs/delivery.md` has the same table.
"""

import asyncio
import base64
import hashlib
import json
import logging
import random
import re
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import botocore.auth
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from support.factories import OFFER, make_job
from support.faulty_proxy import Fault, running_proxy

from pixpod.contract.payload import parse_job
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.intake import Intake
from pixpod.inputs.targets import Targets, Use, parse_opened
from pixpod.job import Delivery
from pixpod.outputs.caller_stores import CallerStores
from pixpod.outputs.s3_storage import S3ImageStore
from pixpod.outputs.spool import Spool
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.job_results import FROM_SPOOL
from pixpod.serving.refresh import Refresh
from pixpod.serving.spooling import Spooling
from pixpod.serving.worker import Worker
from pixpod.testing.fake_engine import FakeEngine

pytest_plugins = ["integration.s3_servers"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "delivery.md"
SCHEMA = Draft202012Validator(
    json.loads(resources.files("pixpod.contract").joinpath("schema/reply.json").read_text("utf-8"))
)
DEADLINE_S = 2.0
ALWAYS = 20
SECRET = SecretStr("hidden")
WAYS = ("put_urls", "s3Config", "s3", "large")
"""`large` is s3 as well, with an image that is too large for a reply."""

REFUSED = "put_refused"
LOST = ("bucket", "bucket", "reply", "spool")


@dataclass(frozen=True)
class Row:
    """A fault and what becomes of the image by each of WAYS: where it is, or the job's error."""

    name: str
    outcomes: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def ways(self):
        return [way for way, outcome in zip(WAYS, self.outcomes, strict=True) if outcome != "-"]


def once(name, fault, *outcomes):
    return Row(name, outcomes or ("its place",) * 4, (fault,))


def always(name, fault, *outcomes):
    return Row(name, outcomes or LOST, (fault,) * ALWAYS)


def changed(name, change, *outcomes):
    return Row(name, outcomes or LOST, changes=(change,))


ROWS = (
    Row("none", ("its place",) * 4),
    once("HTTP 429, once", Fault.TOO_MANY_REQUESTS),
    once("HTTP 500, once", Fault.INTERNAL_ERROR),
    once("HTTP 503, once", Fault.OVERLOADED),
    once("connection reset before the body, once", Fault.RESET_BEFORE_BODY),
    once("connection reset inside the body, once", Fault.RESET_IN_BODY),
    once("connection closed before the answer, once", Fault.DROP),
    once("cut after half of the body, once", Fault.CUT),
    once("stored, but the answer is lost, once", Fault.LOSE_ANSWER),
    once("damaged on the way, once", Fault.DAMAGE, "bucket", "bucket", "its place", "its place"),
    always("slow, within the time", Fault.SLOW, *("its place",) * 4),
    always("slow, beyond the time", Fault.DRIP),
    changed("connection refused", "port"),
    always("connection reset before the body", Fault.RESET_BEFORE_BODY),
    always("connection reset inside the body", Fault.RESET_IN_BODY),
    always("connection closed before the answer", Fault.DROP),
    always("cut after half of the body", Fault.CUT),
    always("damaged on the way", Fault.DAMAGE),
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
    changed(
        "clock of the worker's host an hour late", "clock", "its place", "reply", "reply", "spool"
    ),
    changed("expired URL", "expiry", REFUSED, "-", "-", "-"),
)


class NoisyEngine(FakeEngine):
    """Paints noise, which stays large as a file."""

    async def generate(self, request, on_step=None):
        made = await super().generate(request, on_step)
        images = (
            replace(
                image,
                pixels=replace(
                    image.pixels,
                    pixels=random.Random(image.seed).randbytes(len(image.pixels.pixels)),
                ),
            )
            for image in made.images
        )
        return replace(made, images=tuple(images))


class Stage:
    """A server behind a proxy as the place that fails, and a second bucket without a fault."""

    def __init__(self, server, good_bucket, proxy, row, way, folder):
        changes = set(row.changes)
        self.good_bucket = good_bucket
        self.server = server
        self.proxy = proxy
        self.way = way
        self.endpoint_url = f"http://127.0.0.1:{closed_port()}" if "port" in changes else proxy.url
        self.secret = "wrong-secret" if "secret" in changes else server.secret_access_key
        self.bucket = "missing" if "bucket" in changes else server.bucket
        self.lifetime_s = 1 if "expiry" in changes else 600
        self.spool = Spool(folder / way, secret=SECRET, max_bytes=10_000_000)
        self.engine = NoisyEngine()
        self.job = {**self.make_job(), "id": f"{folder.name}-{way}"}
        self.secret_words = (self.secret, "Signature=", "Credential=", "put.png")
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

    def make_job(self):
        given = {"width": 128, "height": 128}
        if self.way == "put_urls":
            return make_job(**given, output={"put_urls": [self.put_url()]})
        config = {"s3Config": self.s3_config()} if self.way == "s3Config" else {}
        return make_job(**given) | config

    def bucket_of_deployment(self):
        """Return the place that fails, or one that works."""
        if self.way not in ("s3", "large"):
            return self.good_bucket
        settings = self.server.settings(
            endpoint_url=self.endpoint_url,
            bucket=self.bucket,
            secret_access_key=SecretStr(self.secret),
        )
        return S3ImageStore(settings, read_timeout_s=1)

    def worker(self, bucket=None):
        target = parse_opened(f"write:{self.endpoint_url.removeprefix('http://')}")
        targets = Targets(opened=(target,))
        stores = {
            Delivery.S3: bucket or self.bucket_of_deployment(),
            Delivery.INLINE: InlineImageStore(),
        }
        return Worker(
            capabilities=replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE), targets=targets),
            engine=self.engine,
            delivery=ImageDelivery(
                stores=stores,
                key_prefix="deployment",
                key_secret=SECRET,
                max_reply_bytes=1_000 if self.way == "large" else 10_000_000,
                callers=CallerStores(GuardedClient(targets, retry_waits_s=(0.1, 0.2)), targets),
                spool=Spooling(spool=self.spool, secret=SECRET),
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

    async def run(self, bucket=None):
        reply = await self.worker(bucket).handle(self.job)
        SCHEMA.validate(reply)
        return reply

    def outcome(self, reply):
        """Return where the image of a reply is, by the bytes that are there, or its error."""
        if "error" in reply:
            return "spool" if self.spool.folders() else reply["error"].partition(":")[0]
        assert self.spool.folders() == []
        place, data = self.find(reply["images"][0])
        assert hashlib.sha256(data).hexdigest() == reply["images"][0]["sha256"]
        assert len(reply["warnings"]) == (place != "its place")
        return place

    def find(self, image):
        if "data" in image:
            return "reply", base64.b64decode(image["data"])
        if "key" not in image:
            return "its place", self.server.get("put.png")["Body"]
        is_its_place = image["key"].startswith("mine/") or self.way in ("s3", "large")
        data = self.server.get(image["key"])["Body"]
        return "its place" if is_its_place else "bucket", data

    def check_spooled(self):
        """The job comes again once there is a bucket that works."""
        (file,) = self.spool.folder.glob("*/*.png")
        reply = asyncio.run(self.run(self.good_bucket))
        (image,) = reply["images"]
        assert image["sha256"] == file.stem.partition("-")[2]
        assert (self.outcome({**reply, "warnings": []}), reply["warnings"]) == (
            "its place",
            [FROM_SPOOL],
        )
        assert len(self.engine.requests) == 1


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def good_bucket(juicefs):
    return S3ImageStore(juicefs.settings())


@pytest.fixture
def set_stage(juicefs, good_bucket, tmp_path):
    with ExitStack() as stack:

        def start(row, way):
            proxy = stack.enter_context(running_proxy(juicefs.endpoint_url))
            return Stage(juicefs, good_bucket, proxy, row, way, tmp_path)

        yield start


@contextmanager
def clock_of(row):
    """The clock with which botocore signs: maybe an hour late."""
    with pytest.MonkeyPatch.context() as patch:
        if "clock" in row.changes:
            late = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
            patch.setattr(botocore.auth, "get_current_datetime", lambda: late)
        yield


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_fault_of_each_way(set_stage, caplog, row):
    """The ways of a row side by side, each with a proxy and a worker of its own."""
    caplog.set_level(logging.INFO)
    stages = [set_stage(row, way) for way in row.ways]

    async def run_all():
        return await asyncio.gather(*(stage.run() for stage in stages))

    with clock_of(row):
        replies = asyncio.run(run_all())
    outcomes = [stage.outcome(reply) for stage, reply in zip(stages, replies, strict=True)]
    assert outcomes == [outcome for outcome in row.outcomes if outcome != "-"]
    assert ("images not delivered" in caplog.text) == (not {*outcomes} <= {"its place", REFUSED})
    for stage, outcome in zip(stages, outcomes, strict=True):
        assert not [word for word in stage.secret_words if word in caplog.text]
        if outcome == "spool":
            stage.check_spooled()
        if outcome == REFUSED:
            assert (stage.proxy.seen, stage.engine.requests) == ([], []), "before the GPU works"


@pytest.mark.parametrize("way", ["put_urls", "s3Config"])
@pytest.mark.parametrize("fault", [Fault.BAD_REQUEST, Fault.FORBIDDEN, Fault.CONFLICT])
def test_what_cannot_succeed_is_tried_once(set_stage, way, fault):
    stage = set_stage(always("", fault), way)
    asyncio.run(stage.run())
    assert len(stage.proxy.seen) == 1


def md5_of(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode("ascii")


NONE = ROWS[0]


@pytest.mark.parametrize("way", ["put_urls", "s3Config"])
def test_checksum_of_the_image_is_sent_and_the_url_has_no_signature_of_ours(set_stage, way):
    stage = set_stage(NONE, way)
    reply = asyncio.run(stage.run())
    (request,) = stage.proxy.seen
    assert request.headers["content-md5"] == md5_of(stage.find(reply["images"][0])[1])
    if way == "s3Config":
        assert "content-md5" in request.headers["authorization"]
        assert "?" not in request.path


def test_wrong_checksum_is_refused_by_the_server(set_stage):
    """The same request but for the checksum, signed as ours are."""
    stage = set_stage(NONE, "s3Config")
    worker = stage.worker()
    store = worker.delivery.callers.open(parse_job(stage.job, worker.capabilities))
    target = store._targets.parse(f"{stage.endpoint_url}/{stage.bucket}/mine/a", Use.WRITE)

    async def put(checksum):
        headers = store._signed(target, b"picture", {"Content-MD5": checksum})
        return await store._client.write("PUT", target, b"picture", headers, total_s=5)

    answers = [asyncio.run(put(md5_of(data))) for data in (b"picture", b"another")]
    assert [answer.status for answer in answers] == [200, 400]
    assert b"<Code>BadDigest</Code>" in answers[1].body


def test_table_of_the_page_is_this_one():
    lines = re.findall(r"^\| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [tuple(line.split(" | ")) for line in lines]
    assert [row for row in rows if len(row) == 5 and row[0] in {each.name for each in ROWS}] == [
        (row.name, *(outcome.replace("its place", "delivered") for outcome in row.outcomes))
        for row in ROWS
    ]
