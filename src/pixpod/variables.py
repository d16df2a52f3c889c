"""Environment variables that configure a worker: names, defaults and meaning.

Other programs of this repository are configured by options. `docs/settings.md` is generated from
this table. Standard library only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from pixpod.errors import InvalidSettings

PREFIX = "PIXPOD_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of the worker. `default` is a value that may be set, or None where `no_default`
    says what applies instead. `also_reads` are usual names of RunPod, AWS and others, which apply
    if the variable is not set.
    """

    meaning: str
    default: str | None = None
    no_default: str = ""
    also_reads: tuple[str, ...] = ()


_S3_CREDENTIALS = "without any credentials, boto3 looks for a role or profile"

VARIABLES: Mapping[str, Variable] = {
    "PIXPOD_WEIGHTS_DIR": Variable(
        meaning="Directory with `manifest.toml` and the baked weights.",
        no_default="`model_cache` of the source checkout",
    ),
    "PIXPOD_MODELS": Variable(
        meaning="Comma-separated names of the models to serve. The first is loaded first.",
        no_default="all models in the manifest",
    ),
    "PIXPOD_VERIFY": Variable(
        default="chunks",
        meaning=(
            "Check of the weights while they are read: `sizes`, `chunks` (a fast checksum of each "
            "64 MiB) or `full` (SHA-256)."
        ),
    ),
    "PIXPOD_VOLUME_DIR": Variable(
        default="/runpod-volume/pixpod",
        meaning="Directory of weights on a network volume.",
    ),
    "PIXPOD_HUB_CACHE_DIR": Variable(
        default="/runpod-volume/huggingface-cache/hub",
        meaning="Directory of models that the platform caches.",
    ),
    "PIXPOD_LOCAL_DIR": Variable(
        meaning="Directory for local copies of weights from a volume or the model hub.",
        no_default="`pixpod-weights` in the temporary directory",
    ),
    "PIXPOD_ALLOW_HUB": Variable(
        default="false",
        meaning="Allow downloads from the model hub. `HF_TOKEN` gives access to gated models.",
    ),
    "PIXPOD_CATALOG": Variable(
        meaning="TOML file with further models.", no_default="only the built-in catalog"
    ),
    "PIXPOD_ACCEPT_LICENCES": Variable(
        meaning=(
            "Comma-separated licences that you have read and accept, "
            "such as `flux-1-dev-non-commercial`."
        ),
        no_default="none",
    ),
    "PIXPOD_DEVICE": Variable(default="auto", meaning="`auto`, `cuda` or `cpu`."),
    "PIXPOD_PRECISION": Variable(
        meaning=(
            "`float32`, `bfloat16`, `float16`, `float8_dynamic`, `float8_weight_only` or "
            "`int8_dynamic`, for all models or by model: `flux-dev=float8_dynamic,sdxl=float16`."
        ),
        no_default="chosen by GPU and weights",
    ),
    "PIXPOD_PRELOAD": Variable(
        meaning="Load all models at start.", no_default="`true` on the platform, else `false`"
    ),
    "PIXPOD_BATCHING": Variable(
        default="true", meaning="Batch images of different jobs if their requests are compatible."
    ),
    "PIXPOD_MAX_CONCURRENCY": Variable(
        default="auto",
        meaning=(
            "Most jobs that a worker runs at a time, 1 to 64. `auto`: as many as keep the GPU "
            "busy with the served models, and one until the models are warm."
        ),
    ),
    "PIXPOD_COMPILE": Variable(
        default="true",
        meaning=(
            "Compile denoisers and decoders on a GPU. On a CPU only packages in "
            "`PIXPOD_COMPILED_DIR` are used."
        ),
    ),
    "PIXPOD_COMPILED_DIR": Variable(
        meaning="Directory of packages that `scripts/compile` has built.",
        no_default="`compiled` in the weights directory",
    ),
    "PIXPOD_MEMORY_LIMIT_GB": Variable(
        meaning=(
            "GPU memory to use, in GiB. Components that do not fit are offloaded to host memory; "
            "`scripts/plan` shows which."
        ),
        no_default="all memory of the GPU",
    ),
    "PIXPOD_PROMPT_CACHE_MB": Variable(
        default="256", meaning="Host memory for the embeddings of recent prompts, in MB."
    ),
    "PIXPOD_MAX_JOB_S": Variable(
        default="540",
        meaning=(
            "Seconds after which a job fails with `deadline_exceeded`. The platform's own limit "
            "is 600 s by default, and its message says less."
        ),
    ),
    "PIXPOD_REFRESH_AFTER_IMAGES": Variable(
        default="500",
        meaning=(
            "Images after which the worker asks to be refreshed, once no other job is running. "
            "`0`: never."
        ),
    ),
    "PIXPOD_WARMUP_SIZES": Variable(
        meaning=(
            "Sizes to generate once while the worker is idle, such as `1024x1024,832x1216`, or "
            "`none`."
        ),
        no_default="the model's default size on a GPU, else `none`",
    ),
    "PIXPOD_DELIVERY": Variable(
        default="auto",
        meaning=(
            "Delivery of images for jobs that do not choose: `s3`, `directory` or `inline`. "
            "`auto`: S3 if there is a bucket, else inline on the platform and a directory "
            "elsewhere."
        ),
    ),
    "PIXPOD_OUTPUT_DIR": Variable(
        default="images", meaning="Directory for images that are delivered into one."
    ),
    "PIXPOD_MAX_REPLY_BYTES": Variable(
        default="10000000", meaning="Largest reply with inline images, in bytes."
    ),
    "PIXPOD_S3_BUCKET": Variable(
        meaning="Bucket for images.", no_default="no bucket", also_reads=("BUCKET_ENDPOINT_URL",)
    ),
    "PIXPOD_S3_ENDPOINT_URL": Variable(
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
    "PIXPOD_S3_PREFIX": Variable(meaning="Prefix of all keys.", no_default="no prefix"),
    "PIXPOD_S3_PUBLIC_BASE_URL": Variable(
        meaning="Base of public links: the key of an image is appended to it.",
        no_default="presigned links",
    ),
    "PIXPOD_S3_LINK_LIFETIME_S": Variable(
        default="86400", meaning="Lifetime of presigned links in seconds, at most 7 days."
    ),
    "PIXPOD_S3_CHECKSUMS": Variable(
        default="when_required",
        meaning="`when_required` works on R2, GCS and B2 too; `when_supported` is for AWS.",
    ),
    "PIXPOD_S3_ADDRESSING_STYLE": Variable(default="auto", meaning="`auto`, `path` or `virtual`."),
    "PIXPOD_KEY_SECRET": Variable(
        meaning="Random string that makes keys of images unguessable, the same on all workers.",
        no_default="derived from the bucket's secret; must be set if boto3 finds the credentials",
    ),
    "PIXPOD_USD_PER_GPU_SECOND": Variable(
        meaning="Price in US dollars per second, for the cost in replies.",
        no_default="RunPod's flex price of the GPU",
    ),
    "PIXPOD_LOG_LEVEL": Variable(default="INFO", meaning="`INFO`, `WARNING` or `ERROR`."),
}

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
