"""Puts images into an S3 bucket: AWS, R2, GCS, B2 or one's own server.

Imported only if needed, because importing boto3 takes time.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar, cast
from urllib.parse import quote, urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NotConnected

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFile, StoredImage
from pixpod.outputs.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S = 0.5
MAX_WAIT_S = 8.0
"""Waits between the tries of an upload double from the first to this."""

UPLOAD_THREADS = 32

QUICK_TIMEOUT_S = 2.0
"""For what no job depends on: result files are looked up and written in one try."""

CACHE_CONTROL = "max-age=31536000, immutable"
"""A key depends on the bytes that it names."""

_WHAT_TO_SET = {
    "SignatureDoesNotMatch": "PIXPOD_S3_SECRET_ACCESS_KEY must belong to PIXPOD_S3_ACCESS_KEY_ID",
    "InvalidAccessKeyId": "the server does not know PIXPOD_S3_ACCESS_KEY_ID",
    "AccessDenied": "the credentials must allow s3:PutObject below PIXPOD_S3_PREFIX",
    "ExpiredToken": "refresh AWS_SESSION_TOKEN",
    "InvalidToken": "AWS_SESSION_TOKEN must belong to the access key",
    "NoSuchBucket": "PIXPOD_S3_BUCKET must exist at this endpoint",
    "PermanentRedirect": "PIXPOD_S3_REGION must be the bucket's",
    "AuthorizationHeaderMalformed": "PIXPOD_S3_REGION must be the bucket's",
    "NotImplemented": "PIXPOD_S3_CHECKSUMS=when_required suits servers other than AWS",
}
_ANYTHING_ELSE = "check PIXPOD_S3_BUCKET, PIXPOD_S3_ENDPOINT_URL and the credentials"

_MAY_PASS = frozenset({"BadDigest", "RequestTimeout", "RequestTimeTooSkewed", "SlowDown"})
"""Errors below HTTP 500 for which a retry may help: a bad line, the host's clock, throttling."""


def connect(
    settings: S3Settings, session: Session, connect_timeout_s: float, read_timeout_s: float
) -> "S3Client":
    """Return a client that tries once: an S3ImageStore counts the time over all tries."""
    # `settings` admits botocore's own words only, which botocore types as literals.
    checksums = cast('Literal["when_required", "when_supported"]', settings.checksums)
    style = cast('Literal["auto", "path", "virtual"]', settings.addressing_style)
    secret, token = settings.secret_access_key, settings.session_token
    return session.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        aws_session_token=token.get_secret_value() if token else None,
        config=Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            max_pool_connections=UPLOAD_THREADS,
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            s3={"addressing_style": style},
        ),
    )


class S3ImageStore:
    """Puts images into one bucket and answers with a link to each. Also a ResultStore."""

    def __init__(
        self,
        settings: S3Settings,
        *,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 15,
        quick_timeout_s: float = QUICK_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        session = Session()
        self._client = connect(settings, session, connect_timeout_s, read_timeout_s)
        self._quick = connect(settings, session, quick_timeout_s, quick_timeout_s)
        # of their own: uploads that hang must not take the threads that encode, nor look-ups any
        self._threads = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="s3-upload")
        self._quick_threads = ThreadPoolExecutor(8, thread_name_prefix="s3-quick")
        self._is_denial_logged = False

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        """Store an image. Its link is presigned unless the settings have a public base URL.

        What may pass is tried again as long as there is time, with growing waits.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                url = await self._try(image, key, until=end)
                return StoredImage(image=image, key=key, url=url)
            except StorageUnavailable as exc:
                if loop.time() + wait_s >= end:
                    raise
                log.info("image not stored, another try follows", extra={"error": str(exc)})
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_WAIT_S)

    async def _try(self, image: EncodedImage, key: str, *, until: float) -> str:
        """Store an image in one try and return its link. The loop's clock ends it.

        Its thread may go on until a time-out of the connection; it writes the same bytes.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until):
                with self._translating():
                    return await loop.run_in_executor(self._threads, self._put_image, image, key)
        except TimeoutError as exc:
            raise StorageUnavailable(f"{self._place}: no answer in time") from exc

    async def put_file(self, data: bytes, key: str) -> None:
        with self._translating():
            await self._on_quick_thread(
                lambda: self._put(
                    self._quick, data, key, "application/octet-stream", cache_control="no-store"
                )
            )

    async def get_file(self, key: str, max_bytes: int) -> bytes | None:
        with self._translating():
            return await self._on_quick_thread(lambda: self._get(key, max_bytes))

    async def find(self, image: ImageFile, key: str) -> StoredImage | None:
        with self._translating():
            return await self._on_quick_thread(lambda: self._find(image, key))

    def _put_image(self, image: EncodedImage, key: str) -> str:
        content_type = image.format.content_type
        self._put(self._client, image.data, key, content_type, cache_control=CACHE_CONTROL)
        return self._link(key)

    def _put(
        self, client: "S3Client", data: bytes, key: str, content_type: str, *, cache_control: str
    ) -> None:
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        client.put_object(
            Bucket=self._settings.bucket,
            Key=key,
            Body=data,
            ContentType=content_type,
            CacheControl=cache_control,
            # The one checksum that AWS, R2, GCS and B2 all verify, whatever `checksums` says.
            ContentMD5=base64.b64encode(md5).decode("ascii"),
        )

    def _get(self, key: str, max_bytes: int) -> bytes | None:
        try:
            answer = self._quick.get_object(Bucket=self._settings.bucket, Key=key)
        except ClientError as exc:
            if self._is_absent(exc):
                return None
            raise
        with answer["Body"] as body:
            return body.read(max_bytes)

    def _find(self, image: ImageFile, key: str) -> StoredImage | None:
        try:
            answer = self._quick.head_object(Bucket=self._settings.bucket, Key=key)
        except ClientError as exc:
            if self._is_absent(exc):
                return None
            raise
        if answer["ContentLength"] != image.size_bytes:
            return None
        return StoredImage(image=image, key=key, url=self._link(key))

    def _is_absent(self, exc: ClientError) -> bool:
        """Return whether there is no file; AWS says 403 to those who may not list the bucket."""
        status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 403 and not self._is_denial_logged:
            self._is_denial_logged = True
            log.info(
                "the bucket denies to read a file, which counts as absent: stored results need "
                "s3:GetObject below PIXPOD_S3_PREFIX"
            )
        return status in (403, 404)

    def _link(self, key: str) -> str:
        if self._settings.public_base_url is not None:
            return f"{self._settings.public_base_url}/{quote(key)}"
        return self._client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._settings.bucket, "Key": key},
            ExpiresIn=self._settings.link_lifetime_s,
        )

    async def _on_quick_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._quick_threads, call)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise botocore's errors as ours."""
        try:
            yield
        except ClientError as exc:
            raise self._answered(exc) from exc
        except (NotConnected, HTTPClientError) as exc:
            raise StorageUnavailable(f"{self._place}: {_reason(exc)}") from exc
        except NoCredentialsError as exc:
            raise StorageDenied(
                f"{self._place}: no credentials; "
                "set PIXPOD_S3_ACCESS_KEY_ID and PIXPOD_S3_SECRET_ACCESS_KEY"
            ) from exc
        except BotoCoreError as exc:
            raise StorageDenied(f"{self._place}: {_reason(exc)}; {_ANYTHING_ELSE}") from exc

    @property
    def _place(self) -> str:
        """Bucket and host for messages; the rest of an endpoint's URL may contain a password."""
        host = urlsplit(self._client.meta.endpoint_url)
        port = f":{host.port}" if host.port else ""
        return f"bucket {self._settings.bucket!r} at {host.hostname}{port}"

    def _answered(self, exc: ClientError) -> StorageDenied | StorageUnavailable:
        """Convert an error response of the store to one of our errors."""
        code = exc.response["Error"]["Code"]
        status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500 or status == 429 or code in _MAY_PASS:
            return StorageUnavailable(f"{self._place}: {code} (HTTP {status})")
        return StorageDenied(
            f"{self._place}: {code} (HTTP {status}); {_WHAT_TO_SET.get(code, _ANYTHING_ELSE)}"
        )


def _reason(exc: BotoCoreError) -> str:
    """Return the name of an error of botocore; its text may quote a URL or a parameter."""
    return type(exc).__name__.removesuffix("Error")
