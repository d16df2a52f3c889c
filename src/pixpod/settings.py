"""Settings of a worker: the table of its environment variables, which are read once and frozen.

`docs/settings.md` is generated from the table.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import gettempdir

from pydantic import SecretStr

from pixpod.catalog import Size
from pixpod.environment import (
    NAMES,
    SECRET,
    SWITCH,
    Environment,
    Kind,
    Variable,
    one_of,
    split_list,
    variable,
    variables_of,
    whole,
)
from pixpod.errors import InvalidSettings
from pixpod.families import Precision
from pixpod.inputs.targets import ENTRIES, SETTING, OpenedTarget, Targets, parse_opened
from pixpod.job import Delivery, SafetyAction
from pixpod.outputs.s3_settings import S3Settings, read_s3
from pixpod.weights.prefetch import Verify

PREFIX = "PIXPOD_"

SOURCE_WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "model_cache"
"""Weights of a source checkout. A container sets PIXPOD_WEIGHTS_DIR to its own."""

PLATFORM_VOLUME = Path("/runpod-volume")
"""The platform mounts a network volume here, and keeps the models that it caches."""

ALL_MODELS = "*"
"""Key of `Settings.precisions` for models without an entry."""


def _precisions(value: str) -> Mapping[str, Precision]:
    """Read `float32` for all models, or `flux-dev=float8_dynamic,sdxl=float16` by model."""
    found: dict[str, Precision] = {}
    for entry in split_list(value):
        name, _, precision = entry.rpartition("=")
        model = name.strip() or ALL_MODELS
        if model in found:
            raise ValueError("expected one entry per model")
        found[model] = Precision(precision.strip())
    return found


def _sizes(value: str) -> tuple[Size, ...]:
    """Read `1024x1024,832x1216`, or `none` for no sizes."""
    listed = () if value == "none" else split_list(value)
    found = [re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", entry) for entry in listed]
    if not all(found):
        raise ValueError
    return tuple((int(size[1]), int(size[2])) for size in found if size)


def _concurrency(value: str) -> int | None:
    return None if value == "auto" else whole(1, 64).convert(value)


def _gigabytes(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", value) or float(value) <= 0:
        raise ValueError
    return float(value)


def _price(value: str) -> float:
    number = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", value)
    if number is None or not 0 <= float(value) < 1:
        raise ValueError
    return float(value)


def _share(value: str) -> float:
    if not re.fullmatch(r"0?\.[0-9]{1,6}|1", value) or float(value) <= 0:
        raise ValueError
    return float(value)


def _targets(value: str) -> tuple[OpenedTarget, ...]:
    return tuple(parse_opened(entry) for entry in split_list(value))


def _webhook_secrets(value: str) -> tuple[SecretStr, ...]:
    found = split_list(value)
    if len(found) not in (1, 2) or not all(each.startswith("whsec_") for each in found):
        raise ValueError
    if not all(24 <= len(_base64(each.removeprefix("whsec_"))) <= 64 for each in found):
        raise ValueError
    return tuple(SecretStr(each) for each in found)


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


PATH = Kind("a path", Path)
PRECISIONS = Kind(one_of(*Precision).accepted, _precisions)
SIZES = Kind("sizes such as `1024x1024,832x1216`, or `none`", _sizes)
CONCURRENCY = Kind("`auto` or a whole number from 1 to 64", _concurrency)
GIGABYTES = Kind("GiB above 0, such as `24`", _gigabytes)
PRICE = Kind("US dollars per second, from 0 to less than 1", _price)
SHARE = Kind("a number above 0, up to 1", _share)
TARGETS = Kind(ENTRIES.replace("[read", "`[read") + "`", _targets)
STACKS = Kind("comma-separated stacks such as `sdxl+canny+loras`, or names of presets", split_list)
FALLBACK = Kind(
    one_of("auto", "none").accepted, lambda value: one_of("auto", "none").convert(value) == "auto"
)
WEBHOOK_SECRETS = Kind(
    "one or two of `whsec_` and 24 to 64 bytes in base64, comma-separated",
    _webhook_secrets,
    is_secret=True,
)
DELIVERY = Kind("one of `auto`, `s3`, `directory`, `inline`", str)
"""The deliveries. Those that a deployment offers depend on other settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a worker, with the variables that they are read from.

    `precisions` maps models to precisions. ALL_MODELS stands for models without an entry, and an
    empty mapping means the defaults of the catalog. `deliveries` are those that a job may choose
    from; the first is the default. With `max_concurrency` None, it depends on the served models.
    `memory_limit_gb` is in GiB; None means all memory of the GPU. With `refresh_after_images` 0, no
    number of images causes a refresh.
    """

    weights_dir: Path = variable(
        "PIXPOD_WEIGHTS_DIR",
        PATH,
        "Directory with `manifest.toml` and the baked weights.",
        no_default="`model_cache` of the source checkout",
    )
    models: tuple[str, ...] | None = variable(
        "PIXPOD_MODELS",
        NAMES,
        "Models to serve. The first is loaded first.",
        no_default="all models in the manifest",
    )
    extras: tuple[str, ...] | None = variable(
        "PIXPOD_EXTRAS",
        NAMES,
        "Extras, such as ControlNets, that requests may use.",
        no_default="all extras in the manifest that fit a served model",
    )
    stacks: tuple[str, ...] = variable(
        "PIXPOD_STACKS",
        STACKS,
        "What must fit on the GPU together: it is planned for, loaded at start and warmed up. See "
        "[stacks.md](stacks.md).",
        no_default="none; extras are loaded when jobs name them",
    )
    presets_file: Path | None = variable(
        "PIXPOD_PRESETS",
        PATH,
        "TOML file with presets of job fields, which jobs name as `stack`. See "
        "[stacks.md](stacks.md).",
        no_default="only `studio` and `heavy`",
    )
    verify: Verify = variable(
        "PIXPOD_VERIFY",
        one_of(Verify.CHUNKS, Verify.SIZES, Verify.FULL),
        "Check of the weights while they are read: their sizes, a fast checksum of each 64 "
        "MiB (`chunks`), or SHA-256 (`full`).",
        default="chunks",
    )
    volume_dir: Path = variable(
        "PIXPOD_VOLUME_DIR",
        PATH,
        "Directory of weights on a network volume.",
        default=f"{PLATFORM_VOLUME}/pixpod",
    )
    hub_cache_dir: Path = variable(
        "PIXPOD_HUB_CACHE_DIR",
        PATH,
        "Directory of models that the platform caches.",
        default=f"{PLATFORM_VOLUME}/huggingface-cache/hub",
    )
    local_dir: Path = variable(
        "PIXPOD_LOCAL_DIR",
        PATH,
        "Directory for local copies of weights from a volume or the model hub.",
        no_default="`pixpod-weights` in the temporary directory",
    )
    is_hub_allowed: bool = variable(
        "PIXPOD_ALLOW_HUB",
        SWITCH,
        "Allow downloads from the model hub. `HF_TOKEN` gives access to gated models.",
        default="false",
    )
    catalog_file: Path | None = variable(
        "PIXPOD_CATALOG",
        PATH,
        "TOML file with further models.",
        no_default="only the built-in catalog",
    )
    accepted_licences: frozenset[str] = variable(
        "PIXPOD_ACCEPT_LICENCES",
        NAMES,
        "Licences that you have read and accept, such as `flux-1-dev-non-commercial`.",
        no_default="none",
    )
    device: str = variable(
        "PIXPOD_DEVICE",
        one_of("auto", "cuda", "cpu"),
        "Device. `auto`: a GPU if there is one.",
        default="auto",
    )
    precisions: Mapping[str, Precision] = variable(
        "PIXPOD_PRECISION",
        PRECISIONS,
        "Precision of all models, or by model: `flux-dev=float8_dynamic,sdxl=float16`.",
        no_default="chosen by GPU and weights",
    )
    preload: bool = variable(
        "PIXPOD_PRELOAD",
        SWITCH,
        "Load all models at start.",
        no_default="`true` on the platform, else `false`",
    )
    is_batching: bool = variable(
        "PIXPOD_BATCHING",
        SWITCH,
        "Batch images of different jobs if their requests are compatible.",
        default="true",
    )
    max_concurrency: int | None = variable(
        "PIXPOD_MAX_CONCURRENCY",
        CONCURRENCY,
        "Most jobs that a worker runs at a time. `auto`: as many as keep the GPU busy with "
        "the served models, and one until the models are warm.",
        default="auto",
    )
    is_compiling: bool = variable(
        "PIXPOD_COMPILE",
        SWITCH,
        "Compile denoisers and decoders on a GPU. On a CPU only packages in "
        "`PIXPOD_COMPILED_DIR` are used.",
        default="true",
    )
    compiled_dir: Path = variable(
        "PIXPOD_COMPILED_DIR",
        PATH,
        "Directory of packages that `scripts/compile` has built.",
        no_default="`compiled` in the weights directory",
    )
    is_volume_code_trusted: bool = variable(
        "PIXPOD_TRUST_VOLUME_CODE",
        SWITCH,
        "Use compiled packages that lie on a network volume, or that a link leads to there. "
        "A package is code: whoever can write to the volume can run it.",
        default="false",
    )
    memory_limit_gb: float | None = variable(
        "PIXPOD_MEMORY_LIMIT_GB",
        GIGABYTES,
        "GPU memory to use. Components that do not fit are offloaded to host memory; "
        "`scripts/plan` shows which.",
        no_default="all memory of the GPU",
    )
    lora_dir: Path | None = variable(
        "PIXPOD_LORA_DIR",
        PATH,
        "Directory of the deployment's own LoRAs: jobs name `NAME.safetensors` as `NAME`. It is "
        "read once, at start.",
        no_default="no LoRAs by name",
    )
    lora_cache_bytes: int = variable(
        "PIXPOD_LORA_CACHE_BYTES",
        whole(0, 10**13),
        "Disk space for LoRAs from URLs, in bytes, below `PIXPOD_LOCAL_DIR`. The ones used longest "
        "ago are deleted; those that jobs use are not.",
        default="5000000000",
    )
    prompt_cache_bytes: int = variable(
        "PIXPOD_PROMPT_CACHE_MB",
        whole(0, 65_536, times=1_000_000),
        "Host memory for the embeddings of recent prompts, in MB.",
        default="256",
    )
    max_job_s: int = variable(
        "PIXPOD_MAX_JOB_S",
        whole(1, 86_400),
        "Seconds after which a job fails with `deadline_exceeded`. The platform's own limit "
        "is 600 s by default, and its message says less.",
        default="540",
    )
    refresh_after_images: int = variable(
        "PIXPOD_REFRESH_AFTER_IMAGES",
        whole(0, 1_000_000),
        "Images after which the worker requests its refresh, once no other job is running. "
        "`0`: never.",
        default="500",
    )
    warmup_sizes: tuple[Size, ...] | None = variable(
        "PIXPOD_WARMUP_SIZES",
        SIZES,
        "Sizes of images to generate once while the worker is idle.",
        no_default="the model's default size on a GPU, else `none`",
    )
    targets: Targets = variable(
        SETTING,
        TARGETS,
        "Targets that URLs of callers may reach besides public addresses, such as "
        "`write:minio.internal:9000,webhook:127.0.0.1:5000`. Without a use an entry is for "
        "reading, without a port for 80 and 443. An opened target may use http. Link-local "
        "and metadata addresses are opened by their literal address only.",
        no_default="none",
    )
    deliveries: tuple[Delivery, ...] = variable(
        "PIXPOD_DELIVERY",
        DELIVERY,
        "Delivery of images for jobs that do not choose. `auto`: S3 if there is a bucket, "
        "else inline on the platform and a directory elsewhere.",
        default="auto",
    )
    falls_back: bool = variable(
        "PIXPOD_DELIVERY_FALLBACK",
        FALLBACK,
        "Delivery of images that their place does not take. `auto`: the deployment's bucket if the "
        "job named the place, else inline if they fit, else the spool. `none`: the job fails.",
        default="auto",
    )
    spool_dir: Path | None = variable(
        "PIXPOD_SPOOL_DIR",
        PATH,
        "Directory for images that no place has taken, until their job comes again or "
        "`scripts/upload_spool` runs. All workers must see it. It needs `PIXPOD_KEY_SECRET` or a "
        "bucket. See [delivery.md](delivery.md#the-spool).",
        no_default=f"`{PLATFORM_VOLUME}/pixpod-spool` if a network volume is there, else none",
    )
    spool_max_bytes: int = variable(
        "PIXPOD_SPOOL_MAX_BYTES",
        whole(0, 10**15),
        "Largest size of the spool, in bytes. A job whose images do not fit fails with "
        "`spool_full`; nothing is deleted. `0`: no spool.",
        default="10000000000",
    )
    output_dir: Path = variable(
        "PIXPOD_OUTPUT_DIR",
        PATH,
        "Directory for images that are delivered into one.",
        default="images",
    )
    max_reply_bytes: int = variable(
        "PIXPOD_MAX_REPLY_BYTES",
        whole(1_000, 100_000_000),
        "Largest reply with inline images, in bytes.",
        default="10000000",
    )
    key_secret: SecretStr = variable(
        "PIXPOD_KEY_SECRET",
        SECRET,
        "Random string that makes keys of images unguessable and seals result files and the "
        "spool, the same on all workers.",
        no_default="derived from the bucket's secret; must be set if boto3 finds the credentials",
    )
    webhook_secrets: tuple[SecretStr, ...] = variable(
        "PIXPOD_WEBHOOK_SECRETS",
        WEBHOOK_SECRETS,
        "Secrets that sign webhooks. With two, each webhook has two signatures, so that receivers "
        "can change from one secret to the other. See [webhooks.md](webhooks.md).",
        no_default="jobs with a `webhook_url` are refused",
    )
    marks_ai: bool = variable(
        "PIXPOD_MARK_AI",
        SWITCH,
        "Mark files as generated: IPTC `DigitalSourceType` `trainedAlgorithmicMedia` as XMP. The "
        "EU requires a machine-readable mark.",
        default="true",
    )
    has_prompts_in_files: bool = variable(
        "PIXPOD_PROMPTS_IN_FILES",
        SWITCH,
        "Put prompts into the generation data of files. `false` leaves them out of all files, "
        "whatever a job asks for.",
        default="true",
    )
    safety: SafetyAction | None = variable(
        "PIXPOD_SAFETY",
        one_of(*SafetyAction),
        "What happens to images that a classifier finds unsafe for work: the reply says which "
        "(`flag`), they are blurred (`blur`), or not delivered (`drop`). See "
        "[safety.md](safety.md).",
        no_default="jobs choose whether their images are flagged",
    )
    safety_threshold: float = variable(
        "PIXPOD_SAFETY_THRESHOLD",
        SHARE,
        "Score from which an image counts as unsafe for work.",
        default="0.8",
    )
    usd_per_gpu_second: float | None = variable(
        "PIXPOD_USD_PER_GPU_SECOND",
        PRICE,
        "Price of the worker, for the cost in replies.",
        no_default="RunPod's flex price of the GPU",
    )
    log_level: str = variable(
        "PIXPOD_LOG_LEVEL",
        one_of("INFO", "WARNING", "ERROR"),
        "Lowest level that is logged.",
        default="INFO",
    )
    s3: S3Settings | None
    hub_token: SecretStr | None
    worker_id: str

    def requested_precision(self, model: str) -> Precision | None:
        """Return the precision that is set for a model, or None to choose it by GPU and weights."""
        return self.precisions.get(model, self.precisions.get(ALL_MODELS))

    @property
    def letter_place(self) -> Delivery | None:
        """The first place for images that keeps dead letters, too. None if there is no such one."""
        places = (each for each in self.deliveries if each in (Delivery.S3, Delivery.DIRECTORY))
        return next(places, None)

    @staticmethod
    def names_platform(environ: Mapping[str, str]) -> bool:
        """Return whether this is the environment of a worker on the platform."""
        return any(environ.get(name) for name in ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the variables.

        Raises InvalidSettings for a value that cannot be used, and for an unknown `PIXPOD_*` name.
        """
        _check_names(environ)
        env = Environment(environ)
        is_production = cls.names_platform(environ)
        s3 = read_s3(env)
        found = env.read_fields(cls)
        weights_dir = found["weights_dir"] or SOURCE_WEIGHTS_DIR
        key_secret: SecretStr = found["key_secret"] or _derive_key_secret(s3)
        derived = {
            "weights_dir": weights_dir,
            "local_dir": found["local_dir"] or Path(gettempdir()) / "pixpod-weights",
            "accepted_licences": frozenset(found["accepted_licences"] or ()),
            "precisions": found["precisions"] or {},
            "preload": is_production if found["preload"] is None else found["preload"],
            "compiled_dir": found["compiled_dir"] or weights_dir / "compiled",
            "stacks": found["stacks"] or (),
            "targets": Targets(
                opened=found["targets"] or (),
                shows_setting=not is_production or _is_emulated(env),
            ),
            "webhook_secrets": found["webhook_secrets"] or (),
            "deliveries": _read_deliveries(env, s3, is_production),
            "key_secret": key_secret,
        }
        if found["spool_dir"] and not key_secret.get_secret_value():
            raise InvalidSettings(
                "PIXPOD_KEY_SECRET: expected a random string, the same on all workers, because "
                "PIXPOD_SPOOL_DIR is set, got none"
            )
        return cls(
            **{**found, **derived},
            s3=s3,
            hub_token=env.read("HF_TOKEN", SECRET),
            worker_id=env.text("RUNPOD_POD_ID") or "local",
        )


_SECRET_NAMES = re.compile("CREDENTIAL|KEY|PASSWORD|SECRET|TOKEN")

VARIABLES: Mapping[str, Variable] = {
    each.name: each
    for settings in (Settings, S3Settings)
    for each in variables_of(settings).values()
}
"""The variables of pixpod by name. Another name that begins with PREFIX is refused."""

RENAMED: Mapping[str, str] = {
    "PIXPOD_MAX_HELD_JOBS": "PIXPOD_MAX_CONCURRENCY",
    "PIXPOD_RENEW_AFTER_IMAGES": "PIXPOD_REFRESH_AFTER_IMAGES",
}
"""New names of variables by their old ones, which are refused."""


def _check_names(names: Iterable[str]) -> None:
    """Raise InvalidSettings for the first name that begins with PREFIX and is not in VARIABLES."""
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in VARIABLES:
            raise InvalidSettings(f"{name} is not a setting: {_advice(name)}")


def _advice(name: str) -> str:
    if new := RENAMED.get(name):
        return f"it was renamed to {new}"
    if close := get_close_matches(name, VARIABLES, n=1, cutoff=0.75):
        return f"did you mean {close[0]}?"
    return f"expected one of {', '.join(VARIABLES)}"


def secrets_in(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of variables that are secret by their names, ours or not.

    These need no valid settings: the log that says what is wrong must not show them either.
    """
    values = [value for name, value in environ.items() if _SECRET_NAMES.search(name)]
    return (*values, *(part for value in values for part in split_list(value)))


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
    default = env.read("PIXPOD_DELIVERY", one_of("auto", *available))
    return tuple(sorted(available, key=lambda delivery: delivery != default))


def _is_emulated(env: Environment) -> bool:
    """Return whether the platform is on this machine."""
    address = env.text("RUNPOD_WEBHOOK_GET_JOB") or ""
    return re.match(r"http://(127\.0\.0\.1|\[::1\]|localhost)[:/]", address) is not None


def _derive_key_secret(s3: S3Settings | None) -> SecretStr:
    """Derive the secret that makes image keys unguessable from the bucket's secret key.

    All workers of a deployment have the same one: a job that another worker retries finds its
    stored result.
    """
    if s3 is None:
        return SecretStr("")
    if s3.secret_access_key is None:
        raise InvalidSettings(
            "PIXPOD_KEY_SECRET: expected a random string, the same on all workers, because the S3 "
            "credentials are not in the environment, got none"
        )
    digest = hashlib.sha256(
        b"pixpod image keys\0" + s3.secret_access_key.get_secret_value().encode()
    )
    return SecretStr(digest.hexdigest())
