"""Read the settings of a bucket from our variables, then from those of RunPod and of AWS."""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from pixpod.environment import (
    ADDRESS,
    SECRET,
    TEXT,
    Environment,
    Kind,
    one_of,
    variable,
    whole,
)
from pixpod.errors import InvalidSettings
from pixpod.outputs.storage import clean_prefix

MAX_LINK_LIFETIME_S = 7 * 24 * 3600
"""Limit of AWS Signature Version 4 for presigned links."""

PREFIX = Kind("up to 200 of `A-Z a-z 0-9 . _ - /`", clean_prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """A bucket and its credentials. Without keys, boto3 looks for a role or a profile.

    `public_base_url` replaces presigned links: the key of an image is appended to it.
    `checksums` is botocore's mode: `when_required` works on R2, GCS and B2 as well.
    """

    bucket: str = variable(
        "PIXPOD_S3_BUCKET",
        TEXT,
        "Bucket for images.",
        no_default="no bucket",
        also_reads=("BUCKET_ENDPOINT_URL",),
    )
    endpoint_url: str | None = variable(
        "PIXPOD_S3_ENDPOINT_URL",
        ADDRESS,
        "Address of an S3-compatible store.",
        no_default="AWS",
        also_reads=(
            "BUCKET_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_ENDPOINT_URL",
        ),
    )
    region: str = variable(
        "PIXPOD_S3_REGION",
        TEXT,
        "Region of the bucket.",
        no_default="read from the endpoint, else `us-east-1`",
        also_reads=(
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
        ),
    )
    access_key_id: str | None = variable(
        "PIXPOD_S3_ACCESS_KEY_ID",
        TEXT,
        "Access key of the bucket.",
        no_default="without any credentials, boto3 looks for a role or profile",
        also_reads=(
            "BUCKET_ACCESS_KEY_ID",
            "AWS_ACCESS_KEY_ID",
        ),
    )
    secret_access_key: SecretStr | None = variable(
        "PIXPOD_S3_SECRET_ACCESS_KEY",
        SECRET,
        "Secret of the access key.",
        no_default="without any credentials, boto3 looks for a role or profile",
        also_reads=(
            "BUCKET_SECRET_ACCESS_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
        ),
    )
    session_token: SecretStr | None
    prefix: str = variable(
        "PIXPOD_S3_PREFIX", PREFIX, "Prefix of all keys.", no_default="no prefix"
    )
    public_base_url: str | None = variable(
        "PIXPOD_S3_PUBLIC_BASE_URL",
        ADDRESS,
        "Base of public links: the key of an image is appended to it.",
        no_default="presigned links",
    )
    link_lifetime_s: int = variable(
        "PIXPOD_S3_LINK_LIFETIME_S",
        whole(60, MAX_LINK_LIFETIME_S),
        "Lifetime of presigned links in seconds, at most 7 days.",
        default="86400",
    )
    checksums: str = variable(
        "PIXPOD_S3_CHECKSUMS",
        one_of("when_required", "when_supported"),
        "`when_required` works on R2, GCS and B2 too; `when_supported` is for AWS.",
        default="when_required",
    )
    addressing_style: str = variable(
        "PIXPOD_S3_ADDRESSING_STYLE",
        one_of("auto", "path", "virtual"),
        "Place of the bucket's name in an address: in its path or in its host.",
        default="auto",
    )


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
    found = {
        **env.read_fields(S3Settings),
        **_read_keys(env),
        "bucket": bucket.name,
        "endpoint_url": bucket.endpoint_url,
        "region": _read_region(env, bucket.endpoint_url),
    }
    return S3Settings(**{**found, "prefix": found["prefix"] or ""})


def _read_keys(env: Environment) -> dict[str, str | SecretStr | None]:
    """Return the first pair that is set, by field; halves of different pairs are never mixed."""
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
            return {
                "access_key_id": key_id,
                "secret_access_key": SecretStr(secret),
                "session_token": SecretStr(token) if token else None,
            }
    return {"session_token": None}


def _read_region(env: Environment, endpoint_url: str | None) -> str:
    """Return the region that is set, else that of the endpoint's host.

    Stores refuse a signature for another region.
    """
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    return (
        env.text("PIXPOD_S3_REGION")
        or region_of(host or "")
        or env.text("AWS_REGION", "AWS_DEFAULT_REGION")
        or "us-east-1"
    )


def region_of(host: str) -> str | None:
    """Return the region that the host of an endpoint names."""
    named = re.search(r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2}-[a-z-]+-[0-9]+)\.", host)
    spaces = re.search(rf"(?:^|\.){_SPACES}$", host)
    if named:
        return named[1]
    return spaces["region"] if spaces else None


def _read_bucket(env: Environment) -> _Bucket:
    """Return the bucket and its endpoint; RunPod's BUCKET_ENDPOINT_URL may name both."""
    name = env.text("PIXPOD_S3_BUCKET")
    own = env.read("PIXPOD_S3_ENDPOINT_URL", ADDRESS)
    runpods = env.read("BUCKET_ENDPOINT_URL", ADDRESS)
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
    aws = env.read("AWS_ENDPOINT_URL_S3", ADDRESS) or env.read("AWS_ENDPOINT_URL", ADDRESS)
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
