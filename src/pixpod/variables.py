"""Environment variables: the programs that read them, accepted values, defaults and meaning.

A name that begins with PREFIX and is not in this table is refused. `docs/settings.md` is generated
from the table. Standard library only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from pixpod.errors import InvalidSettings

PREFIX = "PIXPOD_"


class Program(StrEnum):
    """Programs that read variables. Other programs are configured by options only."""

    WORKER = "worker"
    DEPLOY = "scripts/deploy"
    EMULATOR = "runpod-emulator"
    BENCH = "scripts/emulator_bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable whose name begins with PREFIX.

    `default` is a value that may be set, or None where `no_default` says what applies instead.
    `also_reads` are the usual names of RunPod and AWS, which apply if the variable is not set.
    """

    meaning: str
    accepted: str = "a text"
    default: str | None = None
    no_default: str = ""
    also_reads: tuple[str, ...] = ()
    read_by: tuple[Program, ...] = (Program.WORKER,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformVariable:
    """A variable of RunPod or Hugging Face, which no variable of ours replaces."""

    meaning: str
    read_by: tuple[Program, ...]


_PATH = "a path"
_SWITCH = "one of `true`, `false`"
_ADDRESS = "an http or https address without user and password"
_S3_CREDENTIALS = "without any credentials, boto3 looks for a role or profile"

VARIABLES: Mapping[str, Variable] = {
    "PIXPOD_WEIGHTS_DIR": Variable(
        accepted=_PATH,
        meaning="Directory with `manifest.toml` and the baked weights.",
        no_default="`model_cache` of the source checkout",
    ),
    "PIXPOD_MODELS": Variable(
        accepted="comma-separated names",
        meaning="Models to serve. The first is loaded first.",
        no_default="all models in the manifest",
    ),
    "PIXPOD_VERIFY": Variable(
        accepted="one of `chunks`, `sizes`, `full`",
        default="chunks",
        meaning=(
            "Check of the weights while they are read: their sizes, a fast checksum of each 64 MiB "
            "(`chunks`), or SHA-256 (`full`)."
        ),
    ),
    "PIXPOD_VOLUME_DIR": Variable(
        accepted=_PATH,
        default="/runpod-volume/pixpod",
        meaning="Directory of weights on a network volume.",
    ),
    "PIXPOD_HUB_CACHE_DIR": Variable(
        accepted=_PATH,
        default="/runpod-volume/huggingface-cache/hub",
        meaning="Directory of models that the platform caches.",
    ),
    "PIXPOD_LOCAL_DIR": Variable(
        accepted=_PATH,
        meaning="Directory for local copies of weights from a volume or the model hub.",
        no_default="`pixpod-weights` in the temporary directory",
    ),
    "PIXPOD_ALLOW_HUB": Variable(
        accepted=_SWITCH,
        default="false",
        meaning="Allow downloads from the model hub. `HF_TOKEN` gives access to gated models.",
    ),
    "PIXPOD_CATALOG": Variable(
        accepted=_PATH,
        meaning="TOML file with further models.",
        no_default="only the built-in catalog",
    ),
    "PIXPOD_ACCEPT_LICENCES": Variable(
        accepted="comma-separated names",
        meaning=("Licences that you have read and accept, such as `flux-1-dev-non-commercial`."),
        no_default="none",
    ),
    "PIXPOD_DEVICE": Variable(
        accepted="one of `auto`, `cuda`, `cpu`",
        default="auto",
        meaning="Device. `auto`: a GPU if there is one.",
    ),
    "PIXPOD_PRECISION": Variable(
        accepted=(
            "one of `float32`, `bfloat16`, `float16`, `float8_dynamic`, `float8_weight_only`, "
            "`int8_dynamic`"
        ),
        meaning=("Precision of all models, or by model: `flux-dev=float8_dynamic,sdxl=float16`."),
        no_default="chosen by GPU and weights",
    ),
    "PIXPOD_PRELOAD": Variable(
        accepted=_SWITCH,
        meaning="Load all models at start.",
        no_default="`true` on the platform, else `false`",
    ),
    "PIXPOD_BATCHING": Variable(
        accepted=_SWITCH,
        default="true",
        meaning="Batch images of different jobs if their requests are compatible.",
    ),
    "PIXPOD_MAX_CONCURRENCY": Variable(
        accepted="`auto` or a whole number from 1 to 64",
        default="auto",
        meaning=(
            "Most jobs that a worker runs at a time. `auto`: as many as keep the GPU "
            "busy with the served models, and one until the models are warm."
        ),
    ),
    "PIXPOD_COMPILE": Variable(
        accepted=_SWITCH,
        default="true",
        meaning=(
            "Compile denoisers and decoders on a GPU. On a CPU only packages in "
            "`PIXPOD_COMPILED_DIR` are used."
        ),
    ),
    "PIXPOD_COMPILED_DIR": Variable(
        accepted=_PATH,
        meaning="Directory of packages that `scripts/compile` has built.",
        no_default="`compiled` in the weights directory",
    ),
    "PIXPOD_TRUST_VOLUME_CODE": Variable(
        accepted=_SWITCH,
        default="false",
        meaning=(
            "Use compiled packages that lie on a network volume, or that a link leads to there. "
            "A package is code: whoever can write to the volume can run it."
        ),
    ),
    "PIXPOD_MEMORY_LIMIT_GB": Variable(
        accepted="GiB above 0, such as `24`",
        meaning=(
            "GPU memory to use. Components that do not fit are offloaded to host memory; "
            "`scripts/plan` shows which."
        ),
        no_default="all memory of the GPU",
    ),
    "PIXPOD_PROMPT_CACHE_MB": Variable(
        accepted="a whole number from 0 to 65536",
        default="256",
        meaning="Host memory for the embeddings of recent prompts, in MB.",
    ),
    "PIXPOD_MAX_JOB_S": Variable(
        accepted="a whole number from 1 to 86400",
        default="540",
        meaning=(
            "Seconds after which a job fails with `deadline_exceeded`. The platform's own limit "
            "is 600 s by default, and its message says less."
        ),
    ),
    "PIXPOD_REFRESH_AFTER_IMAGES": Variable(
        accepted="a whole number from 0 to 1000000",
        default="500",
        meaning=(
            "Images after which the worker asks to be refreshed, once no other job is running. "
            "`0`: never."
        ),
    ),
    "PIXPOD_WARMUP_SIZES": Variable(
        accepted="sizes such as `1024x1024,832x1216`, or `none`",
        meaning=("Sizes of images to generate once while the worker is idle."),
        no_default="the model's default size on a GPU, else `none`",
    ),
    "PIXPOD_ALLOW_TARGETS": Variable(
        accepted="comma-separated `[read:|write:|webhook:]HOST-or-NETWORK[:PORT]`",
        meaning=(
            "Targets that URLs of callers may reach besides public addresses, such as "
            "`write:minio.internal:9000,webhook:127.0.0.1:5000`. Without a use an entry is for "
            "reading, without a port for 80 and 443. An opened target may use http. Link-local "
            "and metadata addresses are opened by their literal address only."
        ),
        no_default="none",
    ),
    "PIXPOD_DELIVERY": Variable(
        accepted="one of `auto`, `s3`, `directory`, `inline`",
        default="auto",
        meaning=(
            "Delivery of images for jobs that do not choose. "
            "`auto`: S3 if there is a bucket, else inline on the platform and a directory "
            "elsewhere."
        ),
    ),
    "PIXPOD_OUTPUT_DIR": Variable(
        accepted=_PATH,
        default="images",
        meaning="Directory for images that are delivered into one.",
    ),
    "PIXPOD_MAX_REPLY_BYTES": Variable(
        accepted="a whole number from 1000 to 100000000",
        default="10000000",
        meaning="Largest reply with inline images, in bytes.",
    ),
    "PIXPOD_S3_BUCKET": Variable(
        meaning="Bucket for images.", no_default="no bucket", also_reads=("BUCKET_ENDPOINT_URL",)
    ),
    "PIXPOD_S3_ENDPOINT_URL": Variable(
        accepted=_ADDRESS,
        meaning="Address of an S3-compatible store.",
        no_default="AWS",
        also_reads=("BUCKET_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    ),
    "PIXPOD_S3_REGION": Variable(
        meaning="Region of the bucket.",
        no_default="read from the endpoint, else `us-east-1`",
        also_reads=("AWS_REGION", "AWS_DEFAULT_REGION"),
    ),
    "PIXPOD_S3_ACCESS_KEY_ID": Variable(
        meaning="Access key of the bucket.",
        no_default=_S3_CREDENTIALS,
        also_reads=("BUCKET_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    ),
    "PIXPOD_S3_SECRET_ACCESS_KEY": Variable(
        meaning="Secret of the access key.",
        no_default=_S3_CREDENTIALS,
        also_reads=("BUCKET_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ),
    "PIXPOD_S3_PREFIX": Variable(
        accepted="up to 200 of `A-Z a-z 0-9 . _ - /`",
        meaning="Prefix of all keys.",
        no_default="no prefix",
    ),
    "PIXPOD_S3_PUBLIC_BASE_URL": Variable(
        accepted=_ADDRESS,
        meaning="Base of public links: the key of an image is appended to it.",
        no_default="presigned links",
    ),
    "PIXPOD_S3_LINK_LIFETIME_S": Variable(
        accepted="a whole number from 60 to 604800",
        default="86400",
        meaning="Lifetime of presigned links in seconds, at most 7 days.",
    ),
    "PIXPOD_S3_CHECKSUMS": Variable(
        accepted="one of `when_required`, `when_supported`",
        default="when_required",
        meaning="`when_required` works on R2, GCS and B2 too; `when_supported` is for AWS.",
    ),
    "PIXPOD_S3_ADDRESSING_STYLE": Variable(
        accepted="one of `auto`, `path`, `virtual`",
        default="auto",
        meaning="Place of the bucket's name in an address: in its path or in its host.",
    ),
    "PIXPOD_KEY_SECRET": Variable(
        meaning="Random string that makes keys of images unguessable, the same on all workers.",
        no_default="derived from the bucket's secret; must be set if boto3 finds the credentials",
    ),
    "PIXPOD_USD_PER_GPU_SECOND": Variable(
        accepted="US dollars per second, from 0 to less than 1",
        meaning="Price of the worker, for the cost in replies.",
        no_default="RunPod's flex price of the GPU",
    ),
    "PIXPOD_LOG_LEVEL": Variable(
        accepted="one of `INFO`, `WARNING`, `ERROR`",
        default="INFO",
        meaning="Lowest level that is logged.",
    ),
}

PLATFORM_VARIABLES: Mapping[str, PlatformVariable] = {
    "HF_TOKEN": PlatformVariable(
        meaning="Token of the model hub, for gated models.", read_by=(Program.WORKER,)
    ),
    "RUNPOD_POD_ID": PlatformVariable(
        meaning="Id of the worker, set by the platform. Not set: `local`.",
        read_by=(Program.WORKER, Program.BENCH),
    ),
    "RUNPOD_WEBHOOK_GET_JOB": PlatformVariable(
        meaning=(
            "Address of jobs, set by the platform. The worker reads only whether it is set, and "
            "whether it leads to this machine."
        ),
        read_by=(Program.WORKER, Program.BENCH),
    ),
    "RUNPOD_REALTIME_PORT": PlatformVariable(
        meaning="Port for jobs, set by the platform. The worker reads only whether it is set.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_LOG_LEVEL": PlatformVariable(
        meaning="Log level of the SDK. The worker raises it to `INFO` at least.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_DEBUG_LEVEL": PlatformVariable(
        meaning="The same, if `RUNPOD_LOG_LEVEL` is not set.",
        read_by=(Program.WORKER,),
    ),
    "RUNPOD_WEBHOOK_POST_OUTPUT": PlatformVariable(
        meaning="Address of results, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_WEBHOOK_PING": PlatformVariable(
        meaning="Address of pings, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_AI_API_KEY": PlatformVariable(
        meaning="Key of the worker, set by the platform.", read_by=(Program.BENCH,)
    ),
    "RUNPOD_API_KEY": PlatformVariable(
        meaning="API key of your account, unless `--api-key-file` names its file.",
        read_by=(Program.DEPLOY,),
    ),
    "RUNPOD_EMULATOR_API_KEY": PlatformVariable(
        meaning="API key that the emulator accepts, unless `--api-key` sets it.",
        read_by=(Program.EMULATOR,),
    ),
    "RUNPOD_INIT_TIMEOUT": PlatformVariable(
        meaning="Seconds that a worker may take to start, as in the endpoint's variables.",
        read_by=(Program.EMULATOR,),
    ),
}
"""Variables of RunPod and Hugging Face by name, besides those that `Variable.also_reads` lists."""

RENAMED: Mapping[str, str] = {
    "PIXPOD_MAX_HELD_JOBS": "PIXPOD_MAX_CONCURRENCY",
    "PIXPOD_RENEW_AFTER_IMAGES": "PIXPOD_REFRESH_AFTER_IMAGES",
}
"""New names of variables by their old ones, which are refused."""


def check_names(names: Iterable[str]) -> None:
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
