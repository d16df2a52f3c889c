"""Where images go: the order of places, what follows a place that fails, and the reply's size."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from support.factories import OFFER, make_files, make_job

from pixpod.contract.payload import parse_job
from pixpod.contract.places import MIN_VALIDITY_S, expiry_of
from pixpod.errors import (
    FetchUnavailable,
    Problem,
    PutRefused,
    StorageDenied,
    StorageUnavailable,
    UrlRefused,
)
from pixpod.inputs.client import Answer, GuardedClient
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets
from pixpod.job import CallerBucket, Delivery, PutUrl
from pixpod.outputs.caller_stores import CallerBucketStore, CallerStores, PutUrlStore
from pixpod.outputs.storage import InlineImageStore
from pixpod.serving.delivery import REPLY_BYTES_BESIDE_IMAGES, ImageDelivery
from pixpod.testing.memory_bucket import MemoryBucket

WITH_S3 = replace(OFFER, deliveries=(Delivery.S3, Delivery.INLINE))
URL = "https://bucket.example.org/a.png"
S3_CONFIG = {
    "endpointUrl": "https://s3.eu-west-3.amazonaws.com",
    "bucketName": "mine",
    "accessId": "id",
    "accessSecret": "planted-secret",
    "objectPath": "renders",
}
REFUSED = PutRefused([Problem(field="output.put_urls[0]", value="403", accepted="a place")])


def put_job(count=1, **output):
    urls = [f"{URL}?{index}" for index in range(count)]
    return parse_job(make_job(num_images=count, output={"put_urls": urls, **output}), WITH_S3)


class Places:
    """CallerPlaces whose store takes the images that `errors` does not name, after `seconds`."""

    def __init__(self, errors=(), seconds=0.0):
        self.errors = dict(errors)
        self.seconds = seconds
        self.limits_s = []

    def open(self, job):
        return self

    async def put(self, image, key, *, within_s):
        self.limits_s.append(within_s)
        await asyncio.sleep(self.seconds)
        if image.index in self.errors:
            raise self.errors[image.index]
        return await InlineImageStore().put(image, key, within_s=within_s)

    async def check(self, job):
        pass

    def close(self):
        pass


class Failing:
    """An ImageStore that takes nothing."""

    async def put(self, image, key, *, within_s):
        raise StorageDenied("no")


def build(places=None, *, bucket=None, **changes):
    stores = {Delivery.INLINE: InlineImageStore()} | ({Delivery.S3: bucket} if bucket else {})
    given: dict[str, Any] = {"key_prefix": "deployment", "max_reply_bytes": 1_000_000} | changes
    return ImageDelivery(
        stores=stores, key_secret=SecretStr("hidden"), callers=places or Places(), **given
    )


def deliver(delivery, job, data=b"picture"):
    return asyncio.run(delivery.deliver(job, make_files(*[data] * len(job.request.seeds))))


def places_of(delivered):
    return ["s3" if image.url else "inline" for image in delivered.images]


class TestChoice:
    @pytest.mark.parametrize(
        ("output", "s3_config", "expected"),
        [
            ({}, None, "s3"),
            ({}, S3_CONFIG, "s3_config"),
            ({"put_urls": [URL]}, S3_CONFIG, "put"),
            ({"put_urls": [{"url": URL}]}, None, "put"),
            ({"delivery": "s3"}, S3_CONFIG, "s3"),
            ({"delivery": "inline"}, S3_CONFIG, "inline"),
            ({"delivery": "put", "put_urls": [URL]}, None, "put"),
        ],
    )
    def test_places_that_a_job_names_come_first(self, output, s3_config, expected):
        job = make_job(output=output) | {"s3Config": s3_config}
        assert parse_job(job, WITH_S3).output.delivery == expected

    def test_secrets_of_a_job_are_not_in_its_repr(self):
        url = {"url": f"{URL}?sig=planted-link", "headers": {"X-Amz-Meta-A": "planted-header"}}
        job = parse_job(make_job(output={"put_urls": [url]}) | {"s3Config": S3_CONFIG}, WITH_S3)
        assert job.put_urls[0].headers == {"x-amz-meta-a": "planted-header"}
        assert job.bucket and job.bucket.access_secret.get_secret_value() == "planted-secret"
        assert "planted" not in repr(job)


class TestExpiry:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=60", "2026-01-01T00:01:00+00:00"),
            ("x-goog-date=20260101T000000Z&x-goog-expires=9", "2026-01-01T00:00:09+00:00"),
            ("AWSAccessKeyId=a&Signature=b&Expires=1767225600", "2026-01-01T00:00:00+00:00"),
            ("sv=2024&se=2026-01-01T00%3A00%3A00Z&sig=a", "2026-01-01T00:00:00+00:00"),
            ("sv=2024&se=2026-01-01&sig=a", "2026-01-01T00:00:00+00:00"),
            ("Expires=1767225600", None),
            ("X-Amz-Expires=60", None),
            ("X-Amz-Date=now&X-Amz-Expires=60", None),
            ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=" + 30 * "9", None),
            ("Signature=b&Expires=" + 30 * "9", None),
            ("", None),
        ],
    )
    def test_expiry_is_read(self, query, expected):
        found = expiry_of(f"{URL}?{query}")
        assert (found and found.isoformat()) == expected

    def test_url_that_will_expire_too_soon_is_refused(self):
        now = datetime(2026, 1, 1, tzinfo=UTC)
        job = make_job(
            output={"put_urls": [f"{URL}?X-Amz-Date=20260101T000000Z&X-Amz-Expires=600"]}
        )
        last = now + timedelta(seconds=600 - MIN_VALIDITY_S)
        assert parse_job(job, WITH_S3, now=lambda: last).put_urls
        with pytest.raises(PutRefused, match="it expires in 59 s"):
            parse_job(job, WITH_S3, now=lambda: last + timedelta(seconds=1))


class TestFallback:
    def test_images_that_are_not_taken_go_to_the_bucket(self):
        bucket = MemoryBucket()
        delivered = deliver(build(Places({1: REFUSED}), bucket=bucket), put_job(3))
        assert places_of(delivered) == ["inline", "s3", "inline"]
        assert delivered.warnings == (
            "output.put_urls: put_refused, so 1 of 3 images are in the deployment's bucket",
        )
        (key,) = bucket.files
        assert key.startswith("deployment/job-1/1-")

    def test_they_go_into_the_reply_if_there_is_no_bucket_or_it_fails(self):
        for bucket in (None, Failing()):
            places = Places({0: REFUSED})
            delivered = deliver(build(places, bucket=bucket), put_job())
            assert places_of(delivered) == ["inline"]
            assert "in the reply" in delivered.warnings[0]

    def test_images_that_the_directory_does_not_take_go_into_the_reply(self):
        delivery = build(bucket=(bucket := MemoryBucket()))
        delivery.stores = {**delivery.stores, Delivery.DIRECTORY: Failing()}
        job = parse_job(make_job(output={"delivery": "directory"}), OFFER)
        delivered = deliver(delivery, job)
        assert (places_of(delivered), bucket.files) == (["inline"], {})
        assert delivered.warnings == (
            "the deployment's directory: storage_denied, so 1 of 1 images are in the reply",
        )

    def test_job_can_keep_its_images_out_of_the_bucket(self):
        bucket = MemoryBucket()
        job = put_job(fallback=False)
        delivered = deliver(build(Places({0: REFUSED}), bucket=bucket), job)
        assert (places_of(delivered), bucket.files) == (["inline"], {})

    def test_error_is_that_of_the_first_place_if_nothing_takes_an_image(self):
        data = bytes(1_000)
        limit = REPLY_BYTES_BESIDE_IMAGES + 1_336
        for max_reply_bytes in (limit, limit - 1):
            delivery = build(
                Places({0: REFUSED}), bucket=Failing(), max_reply_bytes=max_reply_bytes
            )
            if max_reply_bytes == limit:
                assert places_of(deliver(delivery, put_job(), data)) == ["inline"]
            else:
                with pytest.raises(PutRefused):
                    deliver(delivery, put_job(), data)

    def test_deployment_can_turn_it_off(self):
        delivery = build(Places({0: REFUSED}), bucket=MemoryBucket(), falls_back=False)
        with pytest.raises(PutRefused):
            deliver(delivery, put_job())

    def test_unexpected_error_is_not_hidden(self):
        with pytest.raises(ZeroDivisionError):
            deliver(build(Places({0: ZeroDivisionError()}), bucket=MemoryBucket()), put_job())

    def test_all_tries_of_all_places_have_one_deadline(self):
        class Slow(MemoryBucket):
            async def put(self, image, key, *, within_s):
                limits_s.append(within_s)
                return await super().put(image, key, within_s=within_s)

        limits_s: list[float] = []
        places = Places({0: StorageUnavailable("slow")}, seconds=0.3)
        deliver(build(places, bucket=Slow(), total_s=10), put_job())
        assert 4.9 < places.limits_s[0] <= 5
        assert 9 < limits_s[0] <= 9.7

    def test_place_without_another_has_all_the_time(self):
        places = Places()
        deliver(build(places, falls_back=False, total_s=10), put_job())
        assert 9.9 < places.limits_s[0] <= 10


class Client(GuardedClient):
    """A guarded client that answers as it is told, and knows what was sent."""

    def __init__(self, answer=None, refusals=()):
        self.answer = answer or Answer(status=200, body=b"")
        self.refusals = dict(refusals)
        self.sent = []

    async def write(self, method, target, body, headers, *, total_s):
        self.sent.append((method, target.url, body, {k.lower(): v for k, v in headers.items()}))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def check(self, target):
        if target.host in self.refusals:
            raise self.refusals[target.host]

    def close(self):
        pass


def put(store, data=b"picture"):
    (image,) = make_files(data).images
    return asyncio.run(store.put(image, "renders/job-1/0 a.png", within_s=5))


class TestPutUrls:
    def send(self, url, headers=(), answer=None):
        client = Client(answer)
        store = PutUrlStore(client, Targets(), (PutUrl(url=url, headers=dict(headers)),))
        return put(store), client.sent[0]

    def test_image_is_sent_with_its_type_and_checksum(self):
        stored, (method, url, body, headers) = self.send(f"{URL}?a=b%2Fc")
        assert (method, url, body) == ("PUT", f"{URL}?a=b%2Fc", b"picture")
        assert headers == {"content-type": "image/png", "content-md5": "VFb8VMdKKXzplJmMKHOzcA=="}
        assert (stored.url, stored.data, stored.path, stored.key) == (None,) * 4

    def test_headers_of_the_caller_are_sent(self):
        _, (*_, headers) = self.send(URL, {"content-type": "a/b", "x-ms-blob-type": "BlockBlob"})
        assert (headers["content-type"], headers["x-ms-blob-type"]) == ("a/b", "BlockBlob")

    def test_version_2_signature_covers_absent_headers(self):
        _, (*_, headers) = self.send(f"{URL}?AWSAccessKeyId=a&Signature=b&Expires=1767225600")
        assert headers == {}

    @pytest.mark.parametrize(
        ("answer", "error", "text"),
        [
            (
                Answer(status=403, body=b"<Code>AccessDenied</Code>"),
                PutRefused,
                "403, AccessDenied",
            ),
            (Answer(status=302, body=b""), PutRefused, "302"),
            (Answer(status=503, body=b"<Code>a b</Code>"), StorageUnavailable, "503"),
            (Answer(status=429, body=b""), StorageUnavailable, "429"),
            (Refused(UrlRefused, "public", value="bucket"), PutRefused, "public"),
            (Refused(FetchUnavailable, "complete", value="h"), StorageUnavailable, "complete"),
        ],
    )
    def test_failure_is_coded_and_tells_no_path(self, answer, error, text):
        with pytest.raises(error) as caught:
            self.send(f"{URL}?sig=planted", answer=answer)
        assert text in str(caught.value)
        assert "output.put_urls[0]" in str(caught.value)
        assert "planted" not in str(caught.value) and "a.png" not in str(caught.value)


class TestBucketOfAJob:
    def send(self, endpoint_url, name="mine"):
        bucket = CallerBucket(
            endpoint_url=endpoint_url,
            name=name,
            access_id="id",
            access_secret=SecretStr("planted-secret"),
            path="renders",
        )
        client = Client()
        return put(CallerBucketStore(client, Targets(), bucket)), client.sent[0]

    @pytest.mark.parametrize(
        ("endpoint_url", "expected", "region"),
        [
            ("https://s3.eu-west-3.amazonaws.com/", "s3.eu-west-3.amazonaws.com/mine", "eu-west-3"),
            (
                "https://mine.s3.eu-west-3.amazonaws.com",
                "mine.s3.eu-west-3.amazonaws.com",
                "eu-west-3",
            ),
            ("https://a.example.org:9000/s3?x=1", "a.example.org:9000/s3/mine", "us-east-1"),
        ],
    )
    def test_request_is_signed_for_the_bucket(self, endpoint_url, expected, region):
        stored, (_, url, _, headers) = self.send(endpoint_url)
        assert url == f"https://{expected}/renders/job-1/0%20a.png"
        assert f"/{region}/s3/aws4_request" in headers["authorization"]
        assert "content-md5" in headers["authorization"]
        assert stored.url.startswith(f"{url}?X-Amz-Algorithm=AWS4-HMAC-SHA256")
        assert "planted-secret" not in str(headers) + stored.url

    def test_network_volume_has_no_links(self):
        stored, (*_, headers) = self.send("https://s3api-eu-ro-1.runpod.io")
        assert (stored.key, stored.url) == ("renders/job-1/0 a.png", None)
        assert "/eu-ro-1/s3/aws4_request" in headers["authorization"]

    def test_keys_begin_with_the_path_of_the_config(self):
        job = parse_job(make_job() | {"s3Config": S3_CONFIG}, WITH_S3)
        assert build().keys_of(job, Delivery.S3_CONFIG).folder == "renders/job-1"
        assert build().keys_of(job, Delivery.S3).folder == "deployment/job-1"


class TestCheck:
    def check(self, job, **refusals):
        client = Client(refusals={f"{host}.example.org": each for host, each in refusals.items()})
        asyncio.run(CallerStores(client, Targets()).check(job))

    def test_host_with_a_closed_address_is_refused_before_the_gpu_works(self):
        urls = ["https://bucket.example.org/a", "https://inside.example.org/a"]
        job = parse_job(make_job(num_images=2, output={"put_urls": urls}), WITH_S3)
        self.check(job)
        with pytest.raises(PutRefused, match=r"output.put_urls\[1\]"):
            self.check(job, inside=Refused(UrlRefused, "public", value="inside.example.org"))

    def test_name_server_that_does_not_answer_refuses_nothing(self):
        self.check(put_job(), bucket=Refused(FetchUnavailable, "an answer", value="bucket"))

    def test_endpoint_of_a_config_is_checked(self):
        config = S3_CONFIG | {"endpointUrl": "https://inside.example.org"}
        job = parse_job(make_job() | {"s3Config": config}, WITH_S3)
        with pytest.raises(PutRefused, match=r"s3Config\.endpointUrl"):
            self.check(job, inside=Refused(UrlRefused, "public", value="inside.example.org"))
