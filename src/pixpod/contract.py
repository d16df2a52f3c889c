"""The contract with callers as Pydantic models: what a request and a reply look like as JSON.

Only `payload` uses these; the rest of the worker sees dataclasses. The schemas in `schema/`
are generated from here by `scripts/schema`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema

from pixpod.job import Delivery, ImageFormat

API_VERSION: Literal[1] = 1
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON client holds exactly (IEEE 754 double)."""

MAX_PROMPT_CHARACTERS = 10_000

NOT_SUPPORTED = frozenset(
    {
        "image",
        "mask",
        "strength",
        "loras",
        "controlnets",
        "ip_adapter",
        "refiner",
        "upscale",
        "safety",
        "webhook_url",
        "webhook_events",
        "output.put_urls",
        "s3Config",
    }
)
"""Fields of the contract that this version refuses as `not_supported`."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


_SEED_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_SEED}
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = Annotated[
    list[Seed],
    Field(min_length=1),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {"anyOf": [_SEED_SCHEMA, {"type": "array", "items": _SEED_SCHEMA, "minItems": 1}]}
    ),
]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Side = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Edge(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OutputInput(_Edge):
    """How the images are encoded and delivered."""

    format: Annotated[ImageFormat, Field(strict=False)] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="JPEG and WebP only; 90 unless given."
    )
    delivery: Annotated[Delivery, Field(strict=False)] | None = Field(
        default=None, description="The deployment's first choice unless given."
    )
    key_prefix: str | None = Field(
        default=None, description="Below the deployment's own prefix: A-Z a-z 0-9 . _ - /"
    )
    metadata: bool | None = Field(
        default=None,
        description="Generation data, prompt included, in the file; true unless given.",
    )


class JobInput(_Edge):
    """The `input` of a job. What is not given takes the model's default."""

    api_version: Annotated[int, Field(ge=API_VERSION, le=API_VERSION)] | None = None
    model: str = Field(description="A model that the worker serves.")
    prompt: Annotated[Prompt, Field(min_length=1, pattern=r"\S")]
    prompt_2: Prompt | None = Field(
        default=None, description="For the second text encoder; FLUX and SDXL."
    )
    negative_prompt: Prompt | None = None
    width: Side | None = Field(default=None, description="Pixels.")
    height: Side | None = Field(default=None, description="Pixels.")
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Number | None = None
    true_cfg_scale: Annotated[Number, Field(ge=1)] | None = Field(
        default=None, description="FLUX only; above 1 it needs a negative_prompt."
    )
    max_sequence_length: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="FLUX only: tokens that the T5 encoder reads."
    )
    on_long_prompt: Literal["refuse", "truncate"] | None = None
    num_images: Annotated[int, Field(ge=1)] | None = None
    seed: Seeds | None = Field(
        default=None,
        description="One for the first image, counted up for the others, or one for each image.",
    )
    scheduler: str | None = Field(default=None, description="A class name of diffusers.")
    deterministic: bool | None = Field(
        default=None, description="Draw each image in a batch of its own."
    )
    output: OutputInput | None = None


class ImageReply(BaseModel):
    """One image; exactly one of `url`, `data` (plain base64) and `path` is there."""

    url: str | None = None
    data: str | None = None
    path: str | None = None
    key: str | None = None
    seed: int
    width: int
    height: int
    content_type: str
    size_bytes: int
    sha256: str


class ModelReply(BaseModel):
    """What really ran. `weights` tells where they came from."""

    name: str
    revision: str
    precision: str
    weights: str


class TimingsReply(BaseModel):
    """Milliseconds of each phase; one that did not take place is 0."""

    queue: float
    fetch: float
    text_encode: float
    denoise: float
    decode: float
    safety: float
    encode: float
    upload: float
    total: float


class CostReply(BaseModel):
    """The worker's own share of the card; the platform's bill also has start and idle time."""

    gpu: str
    gpu_ms: float
    estimated_usd: float | None
    basis: str


class WorkerReply(BaseModel):
    """`cold_start` is true in the first reply of a worker; `boot_ms` is by phase."""

    id: str
    cold_start: bool
    boot_ms: dict[str, float]
    images_served: int


class Reply(BaseModel):
    """The `output` of a job that succeeded."""

    api_version: Literal[1]
    images: list[ImageReply]
    model: ModelReply
    timings_ms: TimingsReply
    cost: CostReply
    worker: WorkerReply
    warnings: list[str]


class ErrorReply(BaseModel):
    """What a failed job returns: `"<code>: <text>"`; the platform shows it as its `error`."""

    error: str = Field(pattern=r"^[a-z_]+: ")
    refresh_worker: bool | None = None


def json_schemas() -> dict[str, dict[str, Any]]:
    """The schemas that ship, by file name. Any: a JSON document."""
    replies: TypeAdapter[Reply | ErrorReply] = TypeAdapter(Reply | ErrorReply)
    return {"request.json": JobInput.model_json_schema(), "reply.json": replies.json_schema()}
