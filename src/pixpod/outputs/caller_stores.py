"""Sends images to the places that a job names: PUT URLs, and an S3 bucket of its own.

Everything goes through the guarded client, and nothing is read back. Requests to a bucket are
signed here, by botocore, which sends none itself. Errors and logs have hosts, never paths or
queries.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

from pixpod.errors import FetchUnavailable, Problem, PutRefused, StorageUnavailable
from pixpod.inputs.client import Answer, GuardedClient
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target, Targets, Use
from pixpod.job import CallerBucket, Delivery, EncodedImage, Job, PutUrl, StoredImage
from pixpod.outputs.s3_settings import region_of
from pixpod.outputs.storage import ImageStore

if TYPE_CHECKING:
    from botocore.credentials import Credentials

CHECK_S = 5.0
LINK_LIFETIME_S = 24 * 3600
"""Lifetime of links into buckets of jobs."""

_VOLUME_HOST = re.compile(r"s3api-(?P<region>[a-z0-9-]+)\.runpod\.io")
"""RunPod's S3 API for network volumes, which has no presigned URLs."""


class CallerStores:
    """Makes the stores for jobs that name a place. Close it in the end."""

    def __init__(self, client: GuardedClient, targets: Targets) -> None:
        self._client = client
        self._targets = targets

    def close(self) -> None:
        self._client.close()

    def open(self, job: Job) -> ImageStore:
        """Return the store of a job whose delivery `is_callers`."""
        if job.output.delivery is Delivery.PUT:
            return PutUrlStore(self._client, self._targets, job.put_urls)
        assert job.bucket is not None
        return CallerBucketStore(self._client, self._targets, job.bucket)

    async def check(self, job: Job) -> None:
        """Raise PutRefused if a host of a job's places has an address that is refused, or none.

        Nothing is sent. A name server that does not answer is no reason to refuse.
        """
        checks = [self._check(field, url) for field, url in _urls_of(job).items()]
        problems = [problem for problem in await asyncio.gather(*checks) if problem]
        if problems:
            raise PutRefused(problems)

    async def _check(self, field: str, url: str) -> Problem | None:
        try:
            async with asyncio.timeout(CHECK_S):
                await self._client.check(self._targets.parse(url, Use.WRITE))
        except TimeoutError:
            return None
        except Refused as refused:
            return None if refused.error is FetchUnavailable else refused.problem(field)
        return None


def _urls_of(job: Job) -> dict[str, str]:
    """Return the URLs that the images of a job go to, by their fields."""
    if job.output.delivery is Delivery.PUT:
        return {f"output.put_urls[{n}]": each.url for n, each in enumerate(job.put_urls)}
    if job.output.delivery is Delivery.S3_CONFIG and job.bucket is not None:
        return {"s3Config.endpointUrl": job.bucket.endpoint_url}
    return {}


class PutUrlStore:
    """Sends each image to the URL of its index. The key is not used."""

    def __init__(self, client: GuardedClient, targets: Targets, urls: tuple[PutUrl, ...]) -> None:
        self._client = client
        self._targets = targets
        self._urls = urls

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        """Raises PutRefused if the place does not take the image, StorageUnavailable if it may."""
        given = self._urls[image.index]
        field = f"output.put_urls[{image.index}]"
        headers = dict(given.headers)
        if not _signs_absent_headers(given.url):
            headers.setdefault("content-type", image.format.content_type)
            headers["content-md5"] = _md5(image.data)
        target = _parse(self._targets, given.url, field)
        await _taken(
            field, target, self._client.write("PUT", target, image.data, headers, total_s=within_s)
        )
        return StoredImage(image=image)


class CallerBucketStore:
    """Puts images into a bucket whose credentials are part of the job."""

    def __init__(self, client: GuardedClient, targets: Targets, bucket: CallerBucket) -> None:
        self._client = client
        self._targets = targets
        self._bucket = bucket

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        """Raises PutRefused if the bucket does not take the image, StorageUnavailable if it may."""
        field = "s3Config"
        target = _parse(self._targets, _object_url(self._bucket, key), field)
        headers = {
            "Content-Type": image.format.content_type,
            "Content-MD5": _md5(image.data),
        }
        headers = self._signed(target, image.data, headers)
        await _taken(
            field, target, self._client.write("PUT", target, image.data, headers, total_s=within_s)
        )
        return StoredImage(image=image, key=key, url=self._link(target))

    def _signed(self, target: Target, body: bytes, headers: Mapping[str, str]) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth  # 0.3 s, and few jobs need it
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("PUT", target.url, headers=dict(headers), data=body)
        S3SigV4Auth(self._credentials(), "s3", self._region(target)).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}

    def _link(self, target: Target) -> str | None:
        from botocore.auth import S3SigV4QueryAuth
        from botocore.awsrequest import AWSRequest

        if _VOLUME_HOST.fullmatch(target.host):
            return None
        request = AWSRequest("GET", target.url)
        S3SigV4QueryAuth(
            self._credentials(), "s3", self._region(target), expires=LINK_LIFETIME_S
        ).add_auth(request)
        return str(request.url)

    def _credentials(self) -> "Credentials":
        from botocore.credentials import Credentials

        return Credentials(self._bucket.access_id, self._bucket.access_secret.get_secret_value())

    def _region(self, target: Target) -> str:
        volume = _VOLUME_HOST.fullmatch(target.host)
        return volume["region"] if volume else region_of(target.host) or "us-east-1"


def _parse(targets: Targets, url: str, field: str) -> Target:
    try:
        return targets.parse(url, Use.WRITE)
    except Refused as refused:
        raise PutRefused([refused.problem(field)]) from refused


async def _taken(field: str, target: Target, write: Awaitable[Answer]) -> None:
    """Return once a place has taken an image; raise PutRefused or StorageUnavailable if not."""
    try:
        answer = await write
    except Refused as refused:
        if refused.error is FetchUnavailable:
            raise StorageUnavailable(f"{field}: {refused}") from refused
        raise PutRefused([refused.problem(field)]) from refused
    if 200 <= answer.status < 300:
        return
    code = re.search(rb"<Code>([A-Za-z]{1,40})</Code>", answer.body)
    reason = f"HTTP status {answer.status}" + (f", {code[1].decode()}" if code else "")
    is_hosts_clock = code is not None and code[1] == b"RequestTimeTooSkewed"
    if answer.status in (408, 429) or answer.status >= 500 or is_hosts_clock:
        raise StorageUnavailable(f"{field}: {target.host}: {reason}")
    accepted = "a place that takes the image"
    raise PutRefused([Problem(field=field, value=f"{target.host}: {reason}", accepted=accepted)])


def _md5(data: bytes) -> str:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _object_url(bucket: CallerBucket, key: str) -> str:
    """Return the address of an object: the bucket in the path, or in the host if it is there."""
    base = bucket.endpoint_url.partition("?")[0].partition("#")[0].rstrip("/")
    host = urlsplit(base).hostname or ""
    if not host.startswith(f"{bucket.name.lower()}."):
        base = f"{base}/{bucket.name}"
    return f"{base}/{quote(key)}"


def _signs_absent_headers(url: str) -> bool:
    """Return whether a signature of version 2 is in the URL.

    It covers Content-Type and Content-MD5 even where they are absent.
    """
    names = {name.lower() for name, _ in parse_qsl(urlsplit(url).query)}
    return {"signature", "expires"} <= names
