"""Images into an S3 bucket: AWS, R2, GCS, B2 or one's own server.

A module of its own because boto3 costs a worker that does not need it its import time.
"""

import asyncio
import base64
import hashlib
from typing import Literal, cast
from urllib.parse import quote, urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NotConnected

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, StoredImage
from pixpod.outputs.s3_settings import S3Settings

MAX_ATTEMPTS = 3
"""botocore waits up to 1 s before the second and up to 2 s before the third."""

CACHE_CONTROL = "max-age=31536000, immutable"
"""A key depends on the bytes that it names."""

_WHAT_TO_SET = {
    "SignatureDoesNotMatch": "PIXPOD_S3_SECRET_ACCESS_KEY must belong to PIXPOD_S3_ACCESS_KEY_ID",
    "InvalidAccessKeyId": "the server does not know PIXPOD_S3_ACCESS_KEY_ID",
    "AccessDenied": "the credentials must allow s3:PutObject below PIXPOD_S3_PREFIX",
    "ExpiredToken": "renew AWS_SESSION_TOKEN",
    "InvalidToken": "AWS_SESSION_TOKEN must belong to the access key",
    "NoSuchBucket": "PIXPOD_S3_BUCKET must exist at this endpoint",
    "PermanentRedirect": "PIXPOD_S3_REGION must be the bucket's",
    "AuthorizationHeaderMalformed": "PIXPOD_S3_REGION must be the bucket's",
    "NotImplemented": "PIXPOD_S3_CHECKSUMS=when_required suits servers other than AWS",
}
_ANYTHING_ELSE = "check PIXPOD_S3_BUCKET, PIXPOD_S3_ENDPOINT_URL and the credentials"

_MAY_PASS = frozenset({"BadDigest", "RequestTimeout", "RequestTimeTooSkewed", "SlowDown"})
"""Below HTTP 500, yet no fault of the deployment: a bad line, the host's clock, throttling."""


class S3ImageStore:
    """Puts images into one bucket and answers with a link to each."""

    def __init__(
        self, settings: S3Settings, *, connect_timeout_s: float = 5, read_timeout_s: float = 30
    ) -> None:
        self._settings = settings
        # `settings` admits botocore's own words only, which botocore types as literals.
        checksums = cast('Literal["when_required", "when_supported"]', settings.checksums)
        style = cast('Literal["auto", "path", "virtual"]', settings.addressing_style)
        secret, token = settings.secret_access_key, settings.session_token
        self._client = Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            aws_session_token=token.get_secret_value() if token else None,
            config=Config(
                signature_version="s3v4",
                retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
                connect_timeout=connect_timeout_s,
                read_timeout=read_timeout_s,
                max_pool_connections=32,
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                s3={"addressing_style": style},
            ),
        )

    async def put(self, image: EncodedImage, key: str) -> StoredImage:
        """As ImageStore; the link is presigned unless the settings name a public base URL."""
        try:
            url = await asyncio.to_thread(self._put, image, key)
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
        return StoredImage(image=image, key=key, url=url)

    def _put(self, image: EncodedImage, key: str) -> str:
        md5 = hashlib.md5(image.data, usedforsecurity=False).digest()
        self._client.put_object(
            Bucket=self._settings.bucket,
            Key=key,
            Body=image.data,
            ContentType=image.format.content_type,
            CacheControl=CACHE_CONTROL,
            # The one checksum that AWS, R2, GCS and B2 all verify, whatever `checksums` says.
            ContentMD5=base64.b64encode(md5).decode("ascii"),
        )
        if self._settings.public_base_url is not None:
            return f"{self._settings.public_base_url}/{quote(key)}"
        return self._client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._settings.bucket, "Key": key},
            ExpiresIn=self._settings.link_lifetime_s,
        )

    @property
    def _place(self) -> str:
        """Bucket and host for messages; the rest of an endpoint's URL might hold a password."""
        host = urlsplit(self._client.meta.endpoint_url)
        port = f":{host.port}" if host.port else ""
        return f"bucket {self._settings.bucket!r} at {host.hostname}{port}"

    def _answered(self, exc: ClientError) -> StorageDenied | StorageUnavailable:
        """What an answer other than success means for the caller."""
        code = exc.response["Error"]["Code"]
        status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
        if status >= 500 or status == 429 or code in _MAY_PASS:
            return StorageUnavailable(f"{self._place}: {code} (HTTP {status})")
        return StorageDenied(
            f"{self._place}: {code} (HTTP {status}); {_WHAT_TO_SET.get(code, _ANYTHING_ELSE)}"
        )


def _reason(exc: BotoCoreError) -> str:
    """The name of an error of botocore; its text may quote a URL or a parameter."""
    return type(exc).__name__.removesuffix("Error")
