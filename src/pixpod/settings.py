"""Settings of a deployment, read from the environment once and frozen."""

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
from pixpod.job import Delivery
from pixpod.outputs.s3_settings import S3Settings, read_s3
from pixpod.variables import check_names
from pixpod.weights.prefetch import Verify

SOURCE_WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "model_cache"
"""Where a source checkout keeps its weights; a container names its own by PIXPOD_WEIGHTS_DIR."""

PLATFORM_VOLUME = Path("/runpod-volume")
"""Where the platform mounts a network volume, and keeps the models that it caches."""

HUB_CACHE = Path("huggingface-cache/hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a worker. `pixpod.variables` describes the variables they are read from.

    `precisions` is by model, with ALL_MODELS for the others; empty for the catalog's defaults.
    `deliveries` are those that a job may choose from, the default first. `max_concurrency` None
    depends on the served models, `memory_limit_gb` None is all memory of the GPU, in GiB.
    `refresh_after_images` 0 means never.
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
    memory_limit_gb: float | None
    prompt_cache_bytes: int
    deliveries: tuple[Delivery, ...]
    output_dir: Path
    s3: S3Settings | None
    key_secret: Secret
    max_reply_bytes: int
    usd_per_gpu_second: float | None
    worker_id: str
    log_level: str

    def requested_precision(self, model: str) -> Precision | None:
        """Return the precision set for a model, or None to choose it by GPU and weights."""
        return self.precisions.get(model, self.precisions.get(ALL_MODELS))

    @staticmethod
    def names_platform(environ: Mapping[str, str]) -> bool:
        """Return True in the environment of a worker on the platform."""
        return any(environ.get(name) for name in ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `PIXPOD_*` and the usual names of RunPod and AWS.

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
            max_concurrency=_read_concurrency(env),
            refresh_after_images=env.whole("PIXPOD_REFRESH_AFTER_IMAGES", 500, 0, 1_000_000),
            max_job_s=env.whole("PIXPOD_MAX_JOB_S", 540, 1, 86_400),
            is_compiling=env.switch("PIXPOD_COMPILE", default=True),
            compiled_dir=env.read(Path, "PIXPOD_COMPILED_DIR") or weights_dir / "compiled",
            memory_limit_gb=env.read(_gigabytes, "PIXPOD_MEMORY_LIMIT_GB"),
            prompt_cache_bytes=env.whole("PIXPOD_PROMPT_CACHE_MB", 256, 0, 65_536) * 1_000_000,
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
    """Raise the SDK's log level to INFO at least; it must not be imported before.

    At DEBUG, its default, the SDK logs inputs and outputs of jobs: prompts and signed links.
    """
    for name in ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"):
        level = environ.get(name, "").upper()
        if level not in ("INFO", "WARN", "ERROR"):
            environ[name] = "INFO"


def keep_hub_offline(environ: MutableMapping[str, str]) -> None:
    """Let diffusers and transformers look for nothing on the network; the one place that may
    (`pixpod.weights.sources`) asks the hub by itself. They must not be imported before.
    """
    environ["HF_HUB_OFFLINE"] = "1"


ALL_MODELS = "*"
"""Key of `Settings.precisions` for models that have no entry of their own."""


def _read_precisions(env: Environment) -> Mapping[str, Precision]:
    """`float32` for all models, or `flux-dev=float8_dynamic,sdxl=float16` one by one."""
    found: dict[str, Precision] = {}
    for entry in env.listed("PIXPOD_PRECISION") or ():
        name, _, value = entry.rpartition("=")
        if value.strip() not in list(Precision):
            accepted = ", ".join(Precision)
            raise InvalidSettings(f"PIXPOD_PRECISION={entry!r}: expected {accepted}")
        model = name.strip() or ALL_MODELS
        if model in found:
            raise InvalidSettings(f"PIXPOD_PRECISION={entry!r}: expected one entry a model")
        found[model] = Precision(value.strip())
    return found


def _read_sizes(env: Environment) -> tuple[Size, ...] | None:
    """`1024x1024,832x1216`, or `none`; None if nothing is said."""
    listed = env.listed("PIXPOD_WARMUP_SIZES")
    if listed is None or listed == ("none",):
        return None if listed is None else ()
    return tuple(_size(entry) for entry in listed)


def _size(entry: str) -> Size:
    found = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", entry)
    if not found:
        accepted = "sizes such as 1024x1024,832x1216, or none"
        raise InvalidSettings(f"PIXPOD_WARMUP_SIZES={entry!r}: expected {accepted}")
    return int(found[1]), int(found[2])


def _read_concurrency(env: Environment) -> int | None:
    """`auto`, or how many jobs at most are held at a time."""
    value = env.text("PIXPOD_MAX_CONCURRENCY")
    return None if value in (None, "auto") else env.whole("PIXPOD_MAX_CONCURRENCY", 1, 1, 64)


def _gigabytes(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", value) or float(value) <= 0:
        raise ValueError("expected gigabytes (2^30 bytes) above 0, such as 24")
    return float(value)


def _price(value: str) -> float:
    number = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", value)
    if number is None or not 0 <= float(value) < 1:
        raise ValueError("expected a price in US dollars per second, 0 to 1")
    return float(value)


def _read_deliveries(
    env: Environment, s3: S3Settings | None, is_production: bool
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


def _read_key_secret(env: Environment, s3: S3Settings | None) -> Secret:
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
