"""Settings of a worker, read from the environment once and frozen."""

import hashlib
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from pixpod.catalog import Size
from pixpod.environment import Environment, Secret
from pixpod.errors import InvalidSettings
from pixpod.families import Precision
from pixpod.inputs.targets import SETTING, Targets, parse_opened
from pixpod.job import Delivery
from pixpod.outputs.s3_settings import S3Settings, read_s3
from pixpod.variables import check_names
from pixpod.weights.prefetch import Verify

SOURCE_WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "model_cache"
"""Weights of a source checkout. A container sets PIXPOD_WEIGHTS_DIR to its own."""

PLATFORM_VOLUME = Path("/runpod-volume")
"""The platform mounts a network volume here, and keeps the models that it caches."""

HUB_CACHE = Path("huggingface-cache/hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a worker. `pixpod.variables` describes the variables they are read from.

    `precisions` maps models to precisions. ALL_MODELS stands for models without an entry, and an
    empty mapping means the defaults of the catalog. `deliveries` are those that a job may choose
    from; the first is the default. With `max_concurrency` None, it depends on the served models.
    `memory_limit_gb` is in GiB; None means all memory of the GPU. With `refresh_after_images` 0, no
    number of images causes a refresh.
    """

    weights_dir: Path
    hub_cache_dir: Path
    volume_dir: Path
    local_dir: Path
    is_hub_allowed: bool
    hub_token: Secret | None
    verify: Verify
    warmup_sizes: tuple[Size, ...] | None
    models: tuple[str, ...] | None
    catalog_file: Path | None
    accepted_licences: frozenset[str]
    device: str
    precisions: Mapping[str, Precision]
    preload: bool
    is_batching: bool
    max_concurrency: int | None
    refresh_after_images: int
    max_job_s: int
    is_compiling: bool
    compiled_dir: Path
    is_volume_code_trusted: bool
    memory_limit_gb: float | None
    prompt_cache_bytes: int
    targets: Targets
    deliveries: tuple[Delivery, ...]
    output_dir: Path
    s3: S3Settings | None
    key_secret: Secret
    max_reply_bytes: int
    usd_per_gpu_second: float | None
    worker_id: str
    log_level: str

    def requested_precision(self, model: str) -> Precision | None:
        """Return the precision that is set for a model, or None to choose it by GPU and weights."""
        return self.precisions.get(model, self.precisions.get(ALL_MODELS))

    @staticmethod
    def names_platform(environ: Mapping[str, str]) -> bool:
        """Return whether this is the environment of a worker on the platform."""
        return any(environ.get(name) for name in ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the variables of `pixpod.variables`.

        Raises InvalidSettings for a value that cannot be used, and for an unknown `PIXPOD_*` name.
        """
        check_names(environ)
        env = Environment(environ)
        is_production = cls.names_platform(environ)
        s3 = read_s3(env)
        weights_dir = env.read(Path, "PIXPOD_WEIGHTS_DIR") or SOURCE_WEIGHTS_DIR
        return cls(
            weights_dir=weights_dir,
            hub_cache_dir=env.read(Path, "PIXPOD_HUB_CACHE_DIR") or PLATFORM_VOLUME / HUB_CACHE,
            volume_dir=env.read(Path, "PIXPOD_VOLUME_DIR") or PLATFORM_VOLUME / "pixpod",
            local_dir=env.read(Path, "PIXPOD_LOCAL_DIR") or Path(gettempdir()) / "pixpod-weights",
            is_hub_allowed=env.switch("PIXPOD_ALLOW_HUB", default=False),
            hub_token=Secret(token) if (token := env.text("HF_TOKEN")) else None,
            verify=Verify(env.choice("PIXPOD_VERIFY", ("chunks", "sizes", "full"))),
            warmup_sizes=_read_sizes(env),
            models=env.listed("PIXPOD_MODELS"),
            catalog_file=env.read(Path, "PIXPOD_CATALOG"),
            accepted_licences=frozenset(env.listed("PIXPOD_ACCEPT_LICENCES") or ()),
            device=env.choice("PIXPOD_DEVICE", ("auto", "cuda", "cpu")),
            precisions=_read_precisions(env),
            preload=env.switch("PIXPOD_PRELOAD", default=is_production),
            is_batching=env.switch("PIXPOD_BATCHING", default=True),
            max_concurrency=env.read(_concurrency, "PIXPOD_MAX_CONCURRENCY"),
            refresh_after_images=env.whole("PIXPOD_REFRESH_AFTER_IMAGES", 500, 0, 1_000_000),
            max_job_s=env.whole("PIXPOD_MAX_JOB_S", 540, 1, 86_400),
            is_compiling=env.switch("PIXPOD_COMPILE", default=True),
            compiled_dir=env.read(Path, "PIXPOD_COMPILED_DIR") or weights_dir / "compiled",
            is_volume_code_trusted=env.switch("PIXPOD_TRUST_VOLUME_CODE", default=False),
            memory_limit_gb=env.read(_gigabytes, "PIXPOD_MEMORY_LIMIT_GB"),
            prompt_cache_bytes=env.whole("PIXPOD_PROMPT_CACHE_MB", 256, 0, 65_536) * 1_000_000,
            targets=_read_targets(env, is_production),
            deliveries=_read_deliveries(env, s3, is_production),
            output_dir=env.read(Path, "PIXPOD_OUTPUT_DIR") or Path("images"),
            s3=s3,
            key_secret=_read_key_secret(env, s3),
            max_reply_bytes=env.whole("PIXPOD_MAX_REPLY_BYTES", 10_000_000, 1_000, 100_000_000),
            usd_per_gpu_second=env.read(_price, "PIXPOD_USD_PER_GPU_SECOND"),
            worker_id=env.text("RUNPOD_POD_ID") or "local",
            log_level=env.choice("PIXPOD_LOG_LEVEL", ("INFO", "WARNING", "ERROR")),
        )


def keep_sdk_quiet(environ: MutableMapping[str, str]) -> None:
    """Raise the log level of the SDK to at least INFO. Call this before the SDK is imported.

    At DEBUG, its default, the SDK logs the inputs and outputs of jobs: prompts and signed links.
    """
    for name in ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"):
        level = environ.get(name, "").upper()
        if level not in ("INFO", "WARN", "ERROR"):
            environ[name] = "INFO"


def keep_hub_offline(environ: MutableMapping[str, str]) -> None:
    """Forbid diffusers and transformers to use the network. Call this before they are imported.

    Only `pixpod.weights.sources` may use the hub, and does so without their help.
    """
    environ["HF_HUB_OFFLINE"] = "1"


ALL_MODELS = "*"
"""Key of `Settings.precisions` for models without an entry."""


def _read_precisions(env: Environment) -> Mapping[str, Precision]:
    """Read `float32` for all models, or `flux-dev=float8_dynamic,sdxl=float16` by model."""
    found: dict[str, Precision] = {}
    for entry in env.listed("PIXPOD_PRECISION") or ():
        name, _, value = entry.rpartition("=")
        if value.strip() not in list(Precision):
            accepted = ", ".join(Precision)
            raise InvalidSettings(f"PIXPOD_PRECISION: expected one of {accepted}, got {entry!r}")
        model = name.strip() or ALL_MODELS
        if model in found:
            raise InvalidSettings(
                f"PIXPOD_PRECISION: expected one entry per model, got {entry!r} too"
            )
        found[model] = Precision(value.strip())
    return found


def _read_sizes(env: Environment) -> tuple[Size, ...] | None:
    """Read `1024x1024,832x1216`, or `none` for no sizes. Return None if it is not set."""
    listed = env.listed("PIXPOD_WARMUP_SIZES")
    if listed is None or listed == ("none",):
        return None if listed is None else ()
    return tuple(_size(entry) for entry in listed)


def _size(entry: str) -> Size:
    found = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", entry)
    if not found:
        accepted = "sizes such as 1024x1024,832x1216, or none"
        raise InvalidSettings(f"PIXPOD_WARMUP_SIZES: expected {accepted}, got {entry!r}")
    return int(found[1]), int(found[2])


def _concurrency(value: str) -> int | None:
    if value == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,2}", value) or not 1 <= int(value) <= 64:
        raise ValueError("expected auto or a whole number from 1 to 64")
    return int(value)


def _gigabytes(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", value) or float(value) <= 0:
        raise ValueError("expected GiB above 0, such as 24")
    return float(value)


def _price(value: str) -> float:
    number = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", value)
    if number is None or not 0 <= float(value) < 1:
        raise ValueError("expected US dollars per second, from 0 to less than 1")
    return float(value)


def _read_deliveries(
    env: Environment, s3: S3Settings | None, is_production: bool
) -> tuple[Delivery, ...]:
    """Return the deliveries that a job may choose from, the default first.

    A worker on the platform writes images to no disk unless PIXPOD_OUTPUT_DIR is set.
    """
    names_directory = env.text("PIXPOD_OUTPUT_DIR") is not None
    availability = {
        Delivery.S3: s3 is not None,
        Delivery.DIRECTORY: names_directory or not is_production,
        Delivery.INLINE: True,
    }
    available = [delivery for delivery, is_available in availability.items() if is_available]
    default = env.choice("PIXPOD_DELIVERY", ("auto", *available))
    if default == "auto":
        return tuple(available)
    return tuple(sorted(available, key=lambda delivery: delivery != default))


def _read_targets(env: Environment, is_production: bool) -> Targets:
    """Read the targets to open. Refusals show the setting at a desk and under the emulator."""
    opened = []
    for entry in env.listed(SETTING) or ():
        try:
            opened.append(parse_opened(entry))
        except ValueError as exc:
            raise InvalidSettings(f"{SETTING}: {exc}, got {entry!r}") from exc
    return Targets(opened=tuple(opened), shows_setting=not is_production or _is_emulated(env))


def _is_emulated(env: Environment) -> bool:
    """Return whether the platform is on this machine."""
    address = env.text("RUNPOD_WEBHOOK_GET_JOB") or ""
    return re.match(r"http://(127\.0\.0\.1|\[::1\]|localhost)[:/]", address) is not None


def _read_key_secret(env: Environment, s3: S3Settings | None) -> Secret:
    """Return the secret that makes image keys unguessable.

    Unless set, it is derived from the bucket's secret key, so that all workers of a deployment
    have the same one: a job that another worker retries overwrites its own images.
    """
    own = env.text("PIXPOD_KEY_SECRET")
    if own:
        return Secret(own)
    if s3 is None:
        return Secret("")
    if s3.secret_access_key is None:
        raise InvalidSettings(
            "PIXPOD_KEY_SECRET: expected a random string, the same on all workers, because the S3 "
            "credentials are not in the environment, got none"
        )
    digest = hashlib.sha256(b"pixpod image keys\0" + s3.secret_access_key.reveal().encode())
    return Secret(digest.hexdigest())
