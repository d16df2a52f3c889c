"""S3 servers on the loopback interface, with one bucket each."""

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from support.juicefs import juicefs_program, running_gateway

from pixpod.outputs.s3_settings import S3Settings

FORBIDDEN_BUCKET = "forbidden"
"""On moto: a bucket that is there, and that the credentials may not write to."""


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server with one bucket and the only credentials that it knows."""

    endpoint_url: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)

    def settings(self, **changes: Any) -> S3Settings:
        """Settings of a store for this server, with some of them changed."""
        settings = S3Settings(
            bucket=self.bucket,
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            access_key_id=self.access_key_id,
            secret_access_key=SecretStr(self.secret_access_key),
            session_token=None,
            prefix="",
            public_base_url=None,
            link_lifetime_s=3600,
            checksums="when_required",
            addressing_style="path",
        )
        return replace(settings, **changes)

    def environ(self) -> dict[str, str]:
        """The variables of a worker that stores its images here."""
        return {
            "PIXPOD_DELIVERY": "s3",
            "PIXPOD_S3_BUCKET": self.bucket,
            "PIXPOD_S3_ENDPOINT_URL": self.endpoint_url,
            "PIXPOD_S3_ACCESS_KEY_ID": self.access_key_id,
            "PIXPOD_S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "PIXPOD_S3_ADDRESSING_STYLE": "path",
            "PIXPOD_KEY_SECRET": "the same on all",
        }

    def get(self, key: str) -> dict[str, Any]:
        """S3's answer to the owner's GetObject, with the whole `Body` as bytes."""
        answer: dict[str, Any] = self._owner.get_object(Bucket=self.bucket, Key=key)
        with answer["Body"] as body:
            answer["Body"] = body.read()
        return answer

    def put(self, key: str, data: bytes) -> None:
        """The owner's PutObject."""
        self._owner.put_object(Bucket=self.bucket, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """The owner's DeleteObject."""
        self._owner.delete_object(Bucket=self.bucket, Key=key)

    def all_keys(self) -> list[str]:
        """Of everything in the bucket, in order."""
        pages = self._owner.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def make_bucket(self, name: str) -> None:
        self._owner.create_bucket(Bucket=name)

    @cached_property
    def _owner(self) -> Any:
        return _client(self, "s3")


@contextmanager
def running_s3(bucket: str = "images") -> Iterator[S3Server]:
    """The best server there is here: JuiceFS if installed, else a moto that trusts everybody.

    Presigned links work on both.
    """
    program = juicefs_program()
    if program is not None:
        with running_juicefs(program, bucket) as server:
            yield server
    else:
        with running_moto(bucket, is_strict=False) as server:
            yield server


@contextmanager
def running_moto(bucket: str = "images", *, is_strict: bool = True) -> Iterator[S3Server]:
    """A moto server in this process, in memory. One at a time: its state is the process's.

    If strict it refuses wrong credentials, but then cannot serve presigned links (moto 5.2
    looks for the signature in the headers only, and answers 500).
    """
    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.WARNING)  # otherwise one line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _with_credentials(f"http://{host}:{port}", bucket, is_strict)
    finally:
        server.stop()
        log.setLevel(level)


def _with_credentials(endpoint_url: str, bucket: str, is_strict: bool) -> S3Server:
    """Moto accepts anything, except after a number of calls that it is told: then it is strict.

    https://docs.getmoto.org/en/latest/docs/iam.html
    """
    _post(f"{endpoint_url}/moto-api/reset", b"")
    server = S3Server(
        endpoint_url=endpoint_url,
        bucket=bucket,
        access_key_id="AKIANOBODY",
        secret_access_key="nothing",
    )
    server = with_user(server, "worker", _POLICY, is_strict=is_strict)
    server.make_bucket(bucket)
    server.make_bucket(FORBIDDEN_BUCKET)
    return server


def with_user(server: S3Server, name: str, policy: str, *, is_strict: bool = True) -> S3Server:
    """The same moto with the credentials of a new user, who has the rights of an IAM policy."""
    _post(f"{server.endpoint_url}/moto-api/reset-auth", b"3" if is_strict else b"inf")
    iam = _client(server, "iam")
    iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.put_user_policy(UserName=name, PolicyName="s3", PolicyDocument=policy)
    iam.close()
    return replace(
        server, access_key_id=key["AccessKeyId"], secret_access_key=key["SecretAccessKey"]
    )


_POLICY = """
{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
    {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::forbidden/*"}
  ]
}
"""


@contextmanager
def running_juicefs(program: Path, bucket: str = "images") -> Iterator[S3Server]:
    """JuiceFS' gateway, in a process of its own: no simulation, and of other authors than moto."""
    with running_gateway(program) as gateway:
        server = S3Server(bucket=bucket, **gateway._asdict())
        server.make_bucket(bucket)
        yield server


def _client(server: S3Server, service: str) -> Any:
    session: Any = Session()  # its overloads want the service as a literal
    return session.client(
        service,
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.urlopen(request, timeout=5).close()
