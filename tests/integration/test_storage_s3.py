"""The S3 store against servers that check signatures, and through a proxy that fails.

Also the contract of every ImageStore, since it takes a server to test them all.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr
from support.faulty_proxy import Fault
from support.s3_server import FORBIDDEN_BUCKET, with_user

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFormat, StoredImage
from pixpod.outputs.s3_storage import CACHE_CONTROL, S3ImageStore
from pixpod.outputs.storage import DirectoryImageStore, ImageStore, InlineImageStore
from pixpod.testing.memory_bucket import MemoryBucket

pytest_plugins = ["integration.s3_servers"]

ROOT = Path(__file__).resolve().parents[2]
KEY = "pictures/job 1/0-täken+.png"
"""Has what a URL must quote, though `image_key` makes no such keys."""


def image(data=b"not really a picture", format=ImageFormat.PNG):
    return EncodedImage(
        index=0,
        seed=1,
        width=8,
        height=8,
        format=format,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        data=data,
    )


def put(store, *, data=b"not really a picture", format=ImageFormat.PNG, key=KEY, within_s=20):
    return asyncio.run(store.put(image(data, format), key, within_s=within_s))


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read()


def status(url):
    try:
        get(url)
    except urllib.error.HTTPError as answer:
        answer.close()
        return answer.code
    return 200


@dataclass
class Place:
    """A store, and how a caller gets at what it keeps."""

    store: ImageStore
    fetch: Callable[[StoredImage], bytes]


@pytest.fixture(params=["directory", "inline", "moto", "juicefs"])
def place(request, tmp_path):
    match request.param:
        case "directory":
            return Place(DirectoryImageStore(tmp_path), lambda it: Path(it.path or "").read_bytes())
        case "inline":
            return Place(
                InlineImageStore(), lambda it: base64.b64decode(it.data or "", validate=True)
            )
        case "moto":
            moto = request.getfixturevalue("moto")
            return Place(S3ImageStore(moto.settings()), lambda it: moto.get(it.key)["Body"])
        case "juicefs":
            juicefs = request.getfixturevalue("juicefs")
            return Place(S3ImageStore(juicefs.settings()), lambda it: get(it.url))


class TestEveryStore:
    def test_put_image_can_be_fetched(self, place):
        data = bytes(range(256)) * 4096
        stored = put(place.store, data=data)
        assert place.fetch(stored) == data
        assert stored.image == image(data)

    def test_second_put_under_a_key_replaces_the_first(self, place):
        put(place.store, data=b"first, which is longer")
        assert place.fetch(put(place.store, data=b"second")) == b"second"

    def test_reply_has_exactly_one_way_to_the_image(self, place):
        stored = put(place.store)
        assert [stored.url, stored.data, stored.path].count(None) == 2

    def test_simultaneous_puts_all_arrive(self, place):
        async def put_all():
            images = (image(bytes([n])) for n in range(10))
            return await asyncio.gather(
                *(
                    place.store.put(image, f"many/{n}.png", within_s=20)
                    for n, image in enumerate(images)
                )
            )

        for n, stored in enumerate(asyncio.run(put_all())):
            assert place.fetch(stored) == bytes([n])


FILE = "pictures/job 1/täken+.result"


@pytest.fixture(params=["memory", "moto", "juicefs"])
def bucket(request):
    """Each ResultStore, which is an ImageStore as well."""
    if request.param == "memory":
        return MemoryBucket()
    return S3ImageStore(request.getfixturevalue(request.param).settings())


class TestEveryResultStore:
    def test_file_is_got_as_it_was_put(self, bucket):
        data = bytes(range(256)) * 10
        asyncio.run(bucket.put_file(data, FILE))
        assert asyncio.run(bucket.get_file(FILE, 2560)) == data

    def test_second_file_under_a_key_replaces_the_first(self, bucket):
        for data in (b"first, which is longer", b"second"):
            asyncio.run(bucket.put_file(data, FILE))
        assert asyncio.run(bucket.get_file(FILE, 100)) == b"second"

    def test_long_file_is_cut(self, bucket):
        asyncio.run(bucket.put_file(bytes(1_000_000), FILE))
        assert asyncio.run(bucket.get_file(FILE, 1000)) == bytes(1000)

    def test_absent_file_is_none(self, bucket):
        assert asyncio.run(bucket.get_file("absent.result", 100)) is None

    def test_image_is_found_by_its_key_and_size(self, bucket):
        stored = put(bucket, key="found.png")
        found = asyncio.run(bucket.find(stored.image, "found.png"))
        assert (found.image, found.key, bool(found.url)) == (stored.image, stored.key, True)
        assert asyncio.run(bucket.find(stored.image, "absent.png")) is None
        longer = replace(stored.image, size_bytes=stored.image.size_bytes + 1)
        assert asyncio.run(bucket.find(longer, "found.png")) is None


class TestResultFiles:
    def test_link_of_a_found_image_works(self, juicefs):
        store = S3ImageStore(juicefs.settings())
        found = asyncio.run(store.find(put(store).image, KEY))
        assert found and get(found.url) == b"not really a picture"

    def test_denied_file_counts_as_absent_and_is_logged_once(self, s3_server, caplog):
        caplog.set_level(logging.INFO)
        store = S3ImageStore(s3_server.settings(secret_access_key=SecretStr("wrong-secret")))
        for _ in range(2):
            assert asyncio.run(store.get_file(FILE, 100)) is None
        assert asyncio.run(store.find(image(), KEY)) is None
        (line,) = (each for each in caplog.records if each.name.startswith("pixpod"))
        assert "s3:GetObject" in line.message

    @pytest.mark.parametrize(
        "fault", [Fault.INTERNAL_ERROR, Fault.DROP, Fault.STALL], ids=lambda fault: fault.name
    )
    @pytest.mark.parametrize("method", ["put_file", "get_file", "find"])
    def test_one_try_and_not_long(self, proxy, moto, fault, method):
        proxy.faults += [fault] * 2
        store = S3ImageStore(moto.settings(endpoint_url=proxy.url), quick_timeout_s=0.3)
        call = {
            "put_file": lambda: store.put_file(b"data", FILE),
            "get_file": lambda: store.get_file(FILE, 100),
            "find": lambda: store.find(image(), KEY),
        }[method]
        with pytest.raises(StorageUnavailable):
            asyncio.run(call())
        assert len(proxy.seen) == 1

    def test_look_ups_that_hang_leave_threads_for_uploads(self, proxy, moto):
        proxy.faults += [Fault.STALL] * 40
        store = S3ImageStore(moto.settings(endpoint_url=proxy.url), quick_timeout_s=1)

        async def upload_meanwhile():
            lookups = [asyncio.create_task(store.get_file(FILE, 100)) for _ in range(40)]
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await asyncio.to_thread(lambda: None)
            waited_s = time.monotonic() - began
            for lookup in lookups:
                lookup.cancel()
            await asyncio.gather(*lookups, return_exceptions=True)
            return waited_s

        assert asyncio.run(upload_meanwhile()) < 0.5


class TestLinks:
    def test_link_is_presigned_for_the_configured_time(self, s3_server):
        stored = put(S3ImageStore(s3_server.settings(link_lifetime_s=1234)))
        query = parse_qs(urlsplit(stored.url).query)
        assert query["X-Amz-Expires"] == ["1234"]
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert "X-Amz" not in repr(stored)

    def test_image_is_not_public(self, s3_server):
        stored = put(S3ImageStore(s3_server.settings()))
        assert status(stored.url.partition("?")[0]) == 403

    def test_expired_link_is_refused(self, juicefs):
        """Only JuiceFS can tell: a strict moto does not serve links at all."""
        url = put(S3ImageStore(juicefs.settings(link_lifetime_s=5))).url
        assert status(url) == 200
        time.sleep(6)
        assert status(url) == 403

    def test_tampered_link_is_refused(self, juicefs):
        url = put(S3ImageStore(juicefs.settings())).url
        assert status(url.replace("X-Amz-Expires=3600", "X-Amz-Expires=360000")) == 403

    def test_public_base_url_takes_the_place_of_a_presigned_link(self, moto):
        settings = moto.settings(public_base_url="https://cdn.example/pixpod")
        stored = put(S3ImageStore(settings))
        assert stored.url == "https://cdn.example/pixpod/pictures/job%201/0-t%C3%A4ken%2B.png"
        assert stored.key == KEY


def test_content_type_is_kept(s3_server):
    store = S3ImageStore(s3_server.settings())
    for format in ImageFormat:
        put(store, format=format, key=f"type.{format}")
        answer = s3_server.get(f"type.{format}")
        assert answer["ContentType"] == f"image/{format}"
        assert answer["CacheControl"] == CACHE_CONTROL


class TestRefusals:
    """The deployment's fault: the message says what to set, and tells no secret."""

    @pytest.mark.parametrize(
        ("changes", "code", "variable"),
        [
            (
                {"secret_access_key": SecretStr("wrong-secret")},
                "SignatureDoesNotMatch",
                "PIXPOD_S3_SECRET_ACCESS_KEY",
            ),
            ({"access_key_id": "AKIAUNKNOWN"}, "InvalidAccessKeyId", "PIXPOD_S3_ACCESS_KEY_ID"),
            ({"bucket": "missing"}, "NoSuchBucket", "PIXPOD_S3_BUCKET"),
        ],
    )
    def test_wrong_setting_is_named(self, s3_server, changes, code, variable):
        text = self.refusal(s3_server.settings(**changes))
        assert text.startswith("storage_denied: ")
        assert code in text
        assert variable in text
        assert repr(changes.get("bucket", "images")) in text
        for secret in (
            s3_server.secret_access_key,
            s3_server.access_key_id,
            "wrong-secret",
            "AKIAUNKNOWN",
            "Signature=",
        ):
            assert secret not in text

    def test_forbidden_key_is_named(self, moto):
        text = self.refusal(moto.settings(bucket=FORBIDDEN_BUCKET))
        assert "AccessDenied" in text
        assert "s3:PutObject" in text

    def test_missing_credentials_are_named(self, moto, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        text = self.refusal(moto.settings(access_key_id=None, secret_access_key=None))
        assert "PIXPOD_S3_ACCESS_KEY_ID" in text

    def test_impossible_bucket_name_is_named(self, moto):
        assert "PIXPOD_S3_BUCKET" in self.refusal(moto.settings(bucket="no spaces allowed"))

    def test_refusal_is_not_tried_again(self, proxy, moto):
        self.refusal(moto.settings(endpoint_url=proxy.url, bucket="missing"))
        assert len(proxy.seen) == 1

    @staticmethod
    def refusal(settings):
        with pytest.raises(StorageDenied) as caught:
            put(S3ImageStore(settings))
        return str(caught.value)


class TestFailures:
    """The host's fault or the store's: retried, then told as something that may pass."""

    @pytest.mark.parametrize("fault", [Fault.INTERNAL_ERROR, Fault.DROP])
    def test_passing_fault_goes_unnoticed(self, proxy, moto, fault):
        proxy.faults += [fault, fault]
        stored = put(self.store(proxy, moto), data=b"third time lucky")
        assert len(proxy.seen) == 3
        assert moto.get(stored.key)["Body"] == b"third time lucky"

    @pytest.mark.parametrize(
        ("fault", "reason", "num_tries"),
        [
            (Fault.INTERNAL_ERROR, "HTTP 500", 3),
            (Fault.DROP, "ConnectionClosed", 3),
            (Fault.STALL, "no answer in time", 1),
        ],
    )
    def test_lasting_fault_makes_the_store_unavailable_in_time(
        self, proxy, moto, fault, reason, num_tries
    ):
        proxy.faults += [fault] * 10
        store = self.store(proxy, moto, read_timeout_s=30)
        began = time.monotonic()
        text = self.failure(store, within_s=3)
        assert time.monotonic() - began < 15
        assert text.startswith("storage_unavailable: bucket 'images' at 127.0.0.1:")
        assert reason in text
        assert len(proxy.seen) == num_tries

    def test_stalled_try_leaves_time_for_another(self, proxy, moto):
        proxy.faults += [Fault.STALL]
        stored = put(self.store(proxy, moto, read_timeout_s=0.3), data=b"again", within_s=5)
        assert moto.get(stored.key)["Body"] == b"again"

    def test_uploads_that_hang_leave_threads_for_encoding(self, proxy, moto):
        proxy.faults += [Fault.STALL] * 40
        store = self.store(proxy, moto, read_timeout_s=1)

        async def encode_meanwhile():
            puts = [asyncio.create_task(store.put(image(), KEY, within_s=0.3)) for _ in range(40)]
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await asyncio.to_thread(lambda: None)
            waited_s = time.monotonic() - began
            await asyncio.gather(*puts, return_exceptions=True)
            return waited_s

        assert asyncio.run(encode_meanwhile()) < 0.2

    def test_closed_port_makes_the_store_unavailable(self, moto):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        settings = moto.settings(endpoint_url=f"http://127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in self.failure(S3ImageStore(settings))

    def test_password_in_the_endpoint_is_not_revealed(self, moto):
        settings = moto.settings(endpoint_url="http://user:hush@127.0.0.1:1")
        assert "hush" not in self.failure(S3ImageStore(settings))

    @staticmethod
    def store(proxy, moto, *, read_timeout_s=10):
        settings = moto.settings(endpoint_url=proxy.url)
        return S3ImageStore(settings, read_timeout_s=read_timeout_s)

    @staticmethod
    def failure(store, within_s=0.4):
        with pytest.raises(StorageUnavailable) as caught:
            put(store, within_s=within_s)
        return str(caught.value)


class TestRequest:
    """What goes over the line, as the proxy saw it."""

    def test_checksum_that_every_server_knows_is_sent_and_no_other(self, proxy, moto):
        data = b"checked on arrival"
        put(S3ImageStore(moto.settings(endpoint_url=proxy.url)), data=data)
        (request,) = proxy.seen
        md5 = hashlib.md5(data).digest()
        assert request.headers["content-md5"] == base64.b64encode(md5).decode()
        assert not [name for name in request.headers if name.startswith("x-amz-checksum")]
        assert "x-amz-trailer" not in request.headers
        assert "x-amz-sdk-checksum-algorithm" not in request.headers
        assert request.headers.get("content-encoding") is None

    def test_newer_checksums_are_sent_when_requested(self, proxy, moto):
        settings = moto.settings(endpoint_url=proxy.url, checksums="when_supported")
        put(S3ImageStore(settings))
        (request,) = proxy.seen
        assert [name for name in request.headers if name.startswith("x-amz-checksum")]

    def test_signature_is_for_the_configured_region(self, proxy, moto):
        store = S3ImageStore(moto.settings(endpoint_url=proxy.url, region="eu-west-3"))
        put(store)
        assert "/eu-west-3/s3/aws4_request" in proxy.seen[0].headers["authorization"]

    def test_session_token_is_sent_and_named_when_it_is_wrong(self, proxy, moto):
        settings = moto.settings(endpoint_url=proxy.url, session_token=SecretStr("made-up"))
        with pytest.raises(StorageDenied, match="AWS_SESSION_TOKEN") as caught:
            put(S3ImageStore(settings))
        assert proxy.seen[0].headers["x-amz-security-token"] == "made-up"
        assert "made-up" not in str(caught.value)


class TestLeastRights:
    """`docs/delivery.md` shows the rights of a user who can do what a worker does, and no more."""

    IMAGE_KEY = "live/job/0-token.png"
    RESULT_KEY = "live/job/token.result"

    def policy(self, bucket):
        page = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
        text = re.findall(r"## Least rights.*?```json\n(.*?)```", page, re.DOTALL)[0]
        return json.loads(text.replace("BUCKET", bucket).replace("PREFIX", "live"))

    def store(self, moto, name, policy):
        user = with_user(moto, name, json.dumps(policy))
        return S3ImageStore(user.settings(prefix="live"))

    def test_worker_can_do_all_that_it_does(self, moto):
        store = self.store(moto, "least", self.policy(moto.bucket))
        put(store, key=self.IMAGE_KEY)
        asyncio.run(store.put_file(b"result", self.RESULT_KEY))
        assert asyncio.run(store.get_file(self.RESULT_KEY, 100)) == b"result"
        assert asyncio.run(store.find(image(), self.IMAGE_KEY)) is not None

    @pytest.mark.parametrize("action", ["s3:PutObject", "s3:GetObject"])
    def test_each_right_is_needed(self, moto, action):
        policy = self.policy(moto.bucket)
        (statement,) = policy["Statement"]
        statement["Action"].remove(action)
        store = self.store(moto, f"without-{action[3:]}", policy)
        moto.put(self.IMAGE_KEY, b"not really a picture")
        assert (asyncio.run(store.find(image(), self.IMAGE_KEY)) is None) == ("Get" in action)
        if "Put" in action:
            with pytest.raises(StorageDenied):
                put(store, key=self.IMAGE_KEY)

    def test_other_keys_and_other_operations_are_denied(self, moto):
        user = with_user(moto, "no-more", json.dumps(self.policy(moto.bucket)))
        with pytest.raises(StorageDenied):
            put(S3ImageStore(user.settings()), key="elsewhere/0.png")
        moto.put(self.IMAGE_KEY, b"not really a picture")
        with pytest.raises(ClientError, match="AccessDenied"):
            user.all_keys()
        with pytest.raises(ClientError, match="AccessDenied"):
            user.delete(self.IMAGE_KEY)
