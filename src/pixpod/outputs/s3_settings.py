"""Read the settings of a bucket from our variables, then from those of RunPod and of AWS."""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from pixpod.environment import Environment, Secret, web_address
from pixpod.errors import InvalidSettings
from pixpod.outputs.storage import clean_prefix

MAX_LINK_LIFETIME_S = 7 * 24 * 3600
"""Limit of AWS Signature Version 4 for presigned links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """A bucket and its credentials. Without keys, boto3 looks for a role or a profile.

    `public_base_url` replaces presigned links: the key of an image is appended to it.
    `checksums` is botocore's mode: `when_required` works on R2, GCS and B2 as well.
    """

    bucket: str
    endpoint_url: str | None
    region: str
    access_key_id: str | None
    secret_access_key: Secret | None
    session_token: Secret | None
    prefix: str
    public_base_url: str | None
    link_lifetime_s: int
    checksums: str
    addressing_style: str


_SPACES = r"(?P<region>[a-z]{3}[0-9])\.digitaloceanspaces\.com"
"""Hosts of DigitalOcean Spaces, which RunPod's SDK supports too."""


class _Bucket(NamedTuple):
    name: str | None
    endpoint_url: str | None


def read_s3(env: Environment) -> S3Settings | None:
    """Return the settings of the bucket, or None if no variable names one."""
    bucket = _read_bucket(env)
    if bucket.name is None:
        return None
    keys = _read_keys(env)
    return S3Settings(
        bucket=bucket.name,
        endpoint_url=bucket.endpoint_url,
        region=_read_region(env, bucket.endpoint_url),
        access_key_id=keys.access_key_id,
        secret_access_key=keys.secret_access_key,
        session_token=keys.session_token,
        prefix=env.read(clean_prefix, "PIXPOD_S3_PREFIX") or "",
        public_base_url=env.read(web_address, "PIXPOD_S3_PUBLIC_BASE_URL"),
        link_lifetime_s=env.whole("PIXPOD_S3_LINK_LIFETIME_S", 86_400, 60, MAX_LINK_LIFETIME_S),
        checksums=env.choice("PIXPOD_S3_CHECKSUMS", ("when_required", "when_supported")),
        addressing_style=env.choice("PIXPOD_S3_ADDRESSING_STYLE", ("auto", "path", "virtual")),
    )


class _Keys(NamedTuple):
    access_key_id: str | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None


def _read_keys(env: Environment) -> _Keys:
    """Return the first pair that is set. A key and a secret of different pairs are never mixed."""
    for id_name, secret_name, token_name in (
        ("PIXPOD_S3_ACCESS_KEY_ID", "PIXPOD_S3_SECRET_ACCESS_KEY", None),
        ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", None),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        key_id, secret = env.text(id_name), env.text(secret_name)
        if (key_id is None) != (secret is None):
            present = id_name if secret is None else secret_name
            raise InvalidSettings(
                f"{id_name}, {secret_name}: expected both or neither, got only {present}"
            )
        if key_id is not None and secret is not None:
            token = env.text(token_name) if token_name else None
            return _Keys(key_id, Secret(secret), Secret(token) if token else None)
    return _Keys()


def _read_region(env: Environment, endpoint_url: str | None) -> str:
    """Return the region that is set, else that of the endpoint's host.

    Stores refuse a signature for another region.
    """
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    named = re.search(r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2}-[a-z-]+-[0-9]+)\.", host or "")
    spaces = re.search(rf"(?:^|\.){_SPACES}$", host or "")
    return (
        env.text("PIXPOD_S3_REGION")
        or (named and named[1])
        or (spaces and spaces["region"])
        or env.text("AWS_REGION", "AWS_DEFAULT_REGION")
        or "us-east-1"
    )


def _read_bucket(env: Environment) -> _Bucket:
    """Return the bucket and its endpoint; RunPod's BUCKET_ENDPOINT_URL may name both."""
    name = env.text("PIXPOD_S3_BUCKET")
    own = env.read(web_address, "PIXPOD_S3_ENDPOINT_URL")
    runpods = env.read(web_address, "BUCKET_ENDPOINT_URL")
    if own is None and runpods is not None:
        found = _split_bucket(runpods)
        if name is None and found.name is None:
            raise InvalidSettings(
                "BUCKET_ENDPOINT_URL: expected an address with a bucket, or PIXPOD_S3_BUCKET to be "
                "set, got neither"
            )
        return _Bucket(name or found.name, found.endpoint_url)
    if name is None and own is not None:
        raise InvalidSettings(
            "PIXPOD_S3_ENDPOINT_URL: expected PIXPOD_S3_BUCKET to be set too, got no bucket"
        )
    aws = env.read(web_address, "AWS_ENDPOINT_URL_S3") or env.read(web_address, "AWS_ENDPOINT_URL")
    return _Bucket(name, own or aws)


def _split_bucket(url: str) -> _Bucket:
    """Split an address into bucket and endpoint.

    The bucket is the path or, without a path, the label before `s3.` or a Spaces region.
    """
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if "/" in path:
        raise InvalidSettings(
            f"BUCKET_ENDPOINT_URL: expected a path with the bucket's name only, got {parts.path!r}"
        )
    labels = re.fullmatch(rf"(?P<bucket>.+?)\.(?P<host>s3[.-].+|{_SPACES})", parts.netloc)
    if path or labels is None:
        return _Bucket(path or None, urlunsplit((parts.scheme, parts.netloc, "", "", "")))
    return _Bucket(labels["bucket"], urlunsplit((parts.scheme, labels["host"], "", "", "")))
