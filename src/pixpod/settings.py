"""A deployment's choices, read from the environment once and frozen.

The only module that knows names of environment variables. A bad value names its variable.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pixpod.catalog import Precision
from pixpod.errors import InvalidSettings
from pixpod.job import Delivery

T = TypeVar("T")

SOURCE_WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "model_cache"
"""Where a source checkout keeps its weights; a container names its own by PIXPOD_WEIGHTS_DIR."""

MAX_LINK_LIFETIME_S = 7 * 24 * 3600
"""Limit of AWS Signature Version 4 for presigned links."""


class Secret:
    """A string that must not be shown: `repr` and `str` mask it, `reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """One bucket. Without keys boto3 looks for credentials of its own (role, profile).

    `public_base_url` replaces presigned links: the image's key is appended to it.
    `checksums` is botocore's mode: `when_required` is understood by R2, GCS and B2 as well.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a worker is told by its environment. See README for the variables.

    `precisions` is by model, with ALL_MODELS for the others; empty for the catalog's defaults.
    """

    weights_dir: Path
    models: tuple[str, ...] | None
    catalog_file: Path | None
    accepted_licences: frozenset[str]
    device: str
    precisions: Mapping[str, Precision]
    preload: bool
    deliveries: tuple[Delivery, ...]
    output_dir: Path
    s3: S3Settings | None
    key_secret: Secret
    max_reply_bytes: int
    usd_per_gpu_second: float | None
    worker_id: str
    is_production: bool
    log_level: str = field(default="INFO")

    @property
    def default_delivery(self) -> Delivery:
        """Where images go when the job does not say: the first that is offered."""
        return self.deliveries[0]

    @staticmethod
    def names_platform(environ: Mapping[str, str]) -> bool:
        """Whether the environment is that of a worker on the platform."""
        return any(environ.get(name) for name in ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `PIXPOD_*` and the usual names of RunPod and AWS.

        Raises InvalidSettings for a value that cannot be used.
        """
        env = _Environment(environ)
        is_production = cls.names_platform(environ)
        s3 = _read_s3(env)
        return cls(
            weights_dir=env.read(Path, "PIXPOD_WEIGHTS_DIR") or SOURCE_WEIGHTS_DIR,
            models=env.listed("PIXPOD_MODELS"),
            catalog_file=env.read(Path, "PIXPOD_CATALOG"),
            accepted_licences=frozenset(env.listed("PIXPOD_ACCEPT_LICENCES") or ()),
            device=env.choice("PIXPOD_DEVICE", ("auto", "cuda", "cpu")),
            precisions=_read_precisions(env),
            preload=env.switch("PIXPOD_PRELOAD", default=is_production),
            deliveries=_read_deliveries(env, s3, is_production),
            output_dir=env.read(Path, "PIXPOD_OUTPUT_DIR") or Path("images"),
            s3=s3,
            key_secret=_read_key_secret(env, s3),
            max_reply_bytes=env.whole("PIXPOD_MAX_REPLY_BYTES", 10_000_000, 1_000, 100_000_000),
            usd_per_gpu_second=env.read(_price, "PIXPOD_USD_PER_GPU_SECOND"),
            worker_id=env.text("RUNPOD_POD_ID") or "local",
            is_production=is_production,
            log_level=env.choice("PIXPOD_LOG_LEVEL", ("INFO", "WARNING", "ERROR")),
        )


def keep_sdk_quiet(environ: MutableMapping[str, str]) -> None:
    """Raise the SDK's log level to INFO at least; it must not be imported before.

    At DEBUG, its default, the SDK logs inputs and outputs of jobs: prompts and signed links.
    """
    for name in ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"):
        level = environ.get(name, "").upper()
        if level not in ("INFO", "WARN", "ERROR"):
            environ[name] = "INFO"


class _Environment:
    """Typed reads of a mapping; an empty value counts as absent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str) -> str | None:
        """The first of several names that is set."""
        values = (self._environ.get(name, "").strip() for name in names)
        return next((value for value in values if value), None)

    def read(self, convert: Callable[[str], T], name: str) -> T | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError as exc:
            raise InvalidSettings(f"{name}={_without_credentials(value)!r}: {exc}") from exc

    def listed(self, name: str) -> tuple[str, ...] | None:
        value = self.text(name)
        if value is None:
            return None
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def choice(self, name: str, accepted: tuple[str, ...]) -> str:
        """One of `accepted`; its first entry is the default."""
        value = self.text(name) or accepted[0]
        if value not in accepted:
            raise InvalidSettings(f"{name}={value!r}: accepted are {', '.join(accepted)}")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        accepted = ("true", "false") if default else ("false", "true")
        return self.choice(name, accepted) == "true"

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.read(_whole_number, name)
        if value is None:
            return default
        if not lowest <= value <= highest:
            raise InvalidSettings(f"{name}={value}: accepted is {lowest} to {highest}")
        return value


ALL_MODELS = "*"
"""Key of `Settings.precisions` for models that have no entry of their own."""


def _read_precisions(env: _Environment) -> Mapping[str, Precision]:
    """`float32` for all models, or `flux-dev=float8_dynamic,sdxl=float16` one by one."""
    found: dict[str, Precision] = {}
    for entry in env.listed("PIXPOD_PRECISION") or ():
        name, _, value = entry.rpartition("=")
        if value.strip() not in list(Precision):
            accepted = ", ".join(Precision)
            raise InvalidSettings(f"PIXPOD_PRECISION={entry!r}: accepted are {accepted}")
        model = name.strip() or ALL_MODELS
        if model in found:
            raise InvalidSettings(f"PIXPOD_PRECISION={entry!r}: accepted is one entry a model")
        found[model] = Precision(value.strip())
    return found


def _whole_number(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise ValueError("accepted is a whole number")
    return int(value)


def _price(value: str) -> float:
    number = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", value)
    if number is None or not 0 <= float(value) < 1:
        raise ValueError("accepted is a price in US dollars per second, 0 to 1")
    return float(value)


def _without_credentials(value: str) -> str:
    """A value fit for an error, which callers may see: no `user:password@` of an address."""
    return re.sub(r"[^/]*@", "***@", value)


_SPACES = r"(?P<region>[a-z]{3}[0-9])\.digitaloceanspaces\.com"
"""Hosts of DigitalOcean Spaces, which RunPod's SDK knows too."""


class _Bucket(NamedTuple):
    name: str | None
    endpoint_url: str | None


def _read_s3(env: _Environment) -> S3Settings | None:
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
        public_base_url=env.read(_web_address, "PIXPOD_S3_PUBLIC_BASE_URL"),
        link_lifetime_s=env.whole("PIXPOD_S3_LINK_LIFETIME_S", 86_400, 60, MAX_LINK_LIFETIME_S),
        checksums=env.choice("PIXPOD_S3_CHECKSUMS", ("when_required", "when_supported")),
        addressing_style=env.choice("PIXPOD_S3_ADDRESSING_STYLE", ("auto", "path", "virtual")),
    )


class _Keys(NamedTuple):
    access_key_id: str | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None


def _read_keys(env: _Environment) -> _Keys:
    """The first pair that is set; halves of different pairs, or a token, never mix."""
    for id_name, secret_name, token_name in (
        ("PIXPOD_S3_ACCESS_KEY_ID", "PIXPOD_S3_SECRET_ACCESS_KEY", None),
        ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", None),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        key_id, secret = env.text(id_name), env.text(secret_name)
        if (key_id is None) != (secret is None):
            raise InvalidSettings(f"{id_name} and {secret_name}: set both or neither")
        if key_id is not None and secret is not None:
            token = env.text(token_name) if token_name else None
            return _Keys(key_id, Secret(secret), Secret(token) if token else None)
    return _Keys()


def _read_region(env: _Environment, endpoint_url: str | None) -> str:
    """As set, else as the endpoint's host says: a signature for another region is refused."""
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


def _read_bucket(env: _Environment) -> _Bucket:
    """RunPod's BUCKET_ENDPOINT_URL carries the bucket in its path or as a label of its host."""
    name = env.text("PIXPOD_S3_BUCKET")
    own = env.read(_web_address, "PIXPOD_S3_ENDPOINT_URL")
    runpods = env.read(_web_address, "BUCKET_ENDPOINT_URL")
    if own is None and runpods is not None:
        found = _split_bucket(runpods)
        if name is None and found.name is None:
            raise InvalidSettings("BUCKET_ENDPOINT_URL names no bucket: set PIXPOD_S3_BUCKET")
        return _Bucket(name or found.name, found.endpoint_url)
    if name is None and own is not None:
        raise InvalidSettings("PIXPOD_S3_ENDPOINT_URL is of no use without PIXPOD_S3_BUCKET")
    aws = env.read(_web_address, "AWS_ENDPOINT_URL_S3") or env.read(
        _web_address, "AWS_ENDPOINT_URL"
    )
    return _Bucket(name, own or aws)


def _split_bucket(url: str) -> _Bucket:
    """A path names the bucket; without one, the label before `s3.` or a Spaces region does."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if "/" in path:
        raise InvalidSettings("BUCKET_ENDPOINT_URL: accepted is a path of the bucket's name only")
    labels = re.fullmatch(rf"(?P<bucket>.+?)\.(?P<host>s3[.-].+|{_SPACES})", parts.netloc)
    if path or labels is None:
        return _Bucket(path or None, urlunsplit((parts.scheme, parts.netloc, "", "", "")))
    return _Bucket(labels["bucket"], urlunsplit((parts.scheme, labels["host"], "", "", "")))


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("accepted is an http or https address without user and password")
    return value.rstrip("/")


def clean_prefix(value: str) -> str:
    """A key prefix as stored: no slash at its end. Raises ValueError for one that is unsafe."""
    prefix = value.removesuffix("/")
    if not re.fullmatch(r"[A-Za-z0-9._/-]{0,200}", prefix):
        raise ValueError("accepted are up to 200 of A-Z a-z 0-9 . _ - /")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ValueError("accepted are parts other than '', '.' and '..' between slashes")
    return prefix


def _read_deliveries(
    env: _Environment, s3: S3Settings | None, is_production: bool
) -> tuple[Delivery, ...]:
    """What a job may choose from, the default first. A production worker writes to no disk."""
    names_directory = env.text("PIXPOD_OUTPUT_DIR") is not None
    offered = {
        Delivery.S3: s3 is not None,
        Delivery.DIRECTORY: names_directory or not is_production,
        Delivery.INLINE: True,
    }
    default = env.choice(
        "PIXPOD_DELIVERY", ("auto", *(d for d, is_there in offered.items() if is_there))
    )
    listed = [delivery for delivery, is_there in offered.items() if is_there]
    if default == "auto":
        return tuple(listed)
    return tuple(sorted(listed, key=lambda delivery: delivery != default))


def _read_key_secret(env: _Environment, s3: S3Settings | None) -> Secret:
    """What makes image keys unguessable; the same for all workers of a deployment.

    Derived from the bucket's secret key unless set, so that a job retried by another worker
    overwrites its own images.
    """
    own = env.text("PIXPOD_KEY_SECRET")
    if own:
        return Secret(own)
    if s3 is None:
        return Secret("")
    if s3.secret_access_key is None:
        raise InvalidSettings(
            "PIXPOD_KEY_SECRET is needed with S3 credentials that are not in the environment: "
            "set it to the same random string on all workers"
        )
    digest = hashlib.sha256(b"pixpod image keys\0" + s3.secret_access_key.reveal().encode())
    return Secret(digest.hexdigest())
