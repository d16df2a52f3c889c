"""The contract with callers as Pydantic models: what a request and a reply look like as JSON.

Only the edge uses these: `payload` and its rules; the rest sees dataclasses.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from pixpod.catalog import Defaults
from pixpod.job import Delivery, ImageFormat, Mode, Quality, Resize, WebhookEvent

API_VERSION: Literal[1] = 1
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON client holds exactly (IEEE 754 double)."""

MAX_PROMPT_CHARACTERS = 10_000

NOT_SUPPORTED = frozenset(
    {
        "ip_adapter",
        "upscale",
        "safety",
    }
)
"""Fields of the contract that this version refuses as `not_supported`, unless they are null."""

NO_NUL = r"^[^\x00]*$"
NOT_BLANK = r"^\s*[^\s\x00][^\x00]*$"
FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$"
BUCKET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$"
IDEMPOTENCY_KEY = r"^[A-Za-z0-9_-]{1,64}$"
SHA256 = r"^[0-9a-f]{64}$"
PATTERNS: Mapping[str, str] = {
    NO_NUL: "text without NUL characters",
    NOT_BLANK: "text that is not blank, without NUL characters",
    BUCKET_NAME: "2 to 63 of A-Z a-z 0-9 . _ -",
    IDEMPOTENCY_KEY: "1 to 64 of A-Z a-z 0-9 _ -",
    FILE_NAME: "1 to 80 of A-Z a-z 0-9 . _ -, the first of them no dot",
    SHA256: "64 of 0-9 a-f",
}
"""A description of the texts that each pattern of the contract accepts."""


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
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS, pattern=NO_NUL)]
Side = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Edge(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


PUT_HEADERS = r"(content-type|cache-control|content-disposition|x-(amz|ms|goog)-[a-z0-9-]{1,64})"
MAX_PUT_HEADERS = 32
MAX_HEADER_CHARACTERS = 1_024

_HEADERS_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": MAX_HEADER_CHARACTERS},
    "maxProperties": MAX_PUT_HEADERS,
    "propertyNames": {"pattern": f"^(?i:{PUT_HEADERS})$"},
}


def _check_headers(headers: object) -> object:
    """Return headers with names in lower case. One message for all: names may be secret, too."""
    if not isinstance(headers, dict) or len(headers) > MAX_PUT_HEADERS:
        raise PydanticCustomError("headers", f"an object of at most {MAX_PUT_HEADERS} headers")
    lower = {str(name).lower(): value for name, value in headers.items()}
    if len(lower) < len(headers) or not all(re.fullmatch(PUT_HEADERS, name) for name in lower):
        raise PydanticCustomError(
            "headers",
            "only content-type, cache-control, content-disposition, x-amz-*, x-ms-*, x-goog-*, "
            "each once",
        )
    for value in lower.values():
        if not isinstance(value, str) or not re.fullmatch(
            rf"[\x20-\x7e]{{0,{MAX_HEADER_CHARACTERS}}}", value
        ):
            raise PydanticCustomError(
                "headers", f"values of up to {MAX_HEADER_CHARACTERS} printable ASCII characters"
            )
    return lower


class PutUrlInput(_Edge):
    """A destination of one image, which is sent by HTTP PUT."""

    url: str
    headers: (
        Annotated[dict[str, str], BeforeValidator(_check_headers), WithJsonSchema(_HEADERS_SCHEMA)]
        | None
    ) = None


def _as_put_url(value: object) -> object:
    if isinstance(value, dict) and not set(value) <= {"url", "headers"}:
        raise PydanticCustomError("put_url", "a URL, or an object of url and headers")
    return {"url": value} if isinstance(value, str) else value


class S3ConfigInput(_Edge):
    """`s3Config` of the platform, which stands beside `input`: a bucket of the job's own."""

    endpoint_url: str = Field(alias="endpointUrl")
    bucket_name: Annotated[str, Field(pattern=BUCKET_NAME)] = Field(alias="bucketName")
    access_id: Annotated[str, Field(min_length=1, max_length=1_024)] = Field(alias="accessId")
    access_secret: Annotated[SecretStr, Field(min_length=1)] = Field(alias="accessSecret")
    object_path: str | None = Field(default=None, alias="objectPath")


class OutputInput(_Edge):
    """Encoding and delivery of the images."""

    format: Annotated[ImageFormat, Field(strict=False)] | None = Field(
        default=None, description="png unless given."
    )
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="JPEG and WebP only; 90 unless given."
    )
    delivery: Annotated[Delivery, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "The place that the job names, else the deployment's first choice, unless given; one "
            "that is not offered is refused."
        ),
    )
    put_urls: (
        Annotated[
            list[Annotated[PutUrlInput, BeforeValidator(_as_put_url)]],
            Field(min_length=1),
            WithJsonSchema(
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"type": "string"},
                            {
                                "type": "object",
                                "properties": {
                                    "url": {"type": "string"},
                                    "headers": _HEADERS_SCHEMA,
                                },
                                "required": ["url"],
                                "additionalProperties": False,
                            },
                        ]
                    },
                    "minItems": 1,
                }
            ),
        ]
        | None
    ) = Field(
        default=None,
        description=(
            "One presigned URL per image, to which it is sent by HTTP PUT; as an object "
            "{url, headers} with the headers that were signed. See delivery.md."
        ),
    )
    fallback: bool | None = Field(
        default=None,
        description=(
            "Put images into the deployment's bucket if another place fails; true unless given."
        ),
    )
    key_prefix: str | None = Field(
        default=None,
        description="Put below the deployment's own prefix; no part of it is '.' or '..'.",
        examples=["customers/42"],
        json_schema_extra={
            "maxLength": 200,
            "pattern": r"^(?!(.*/)?\.{1,2}(/|$))([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?)?$",
        },
    )
    name: Annotated[str, Field(pattern=FILE_NAME)] | None = Field(
        default=None,
        description="Begins the names of the images' files, before their index.",
        examples=["poster"],
    )
    metadata: bool | None = Field(
        default=None,
        description=(
            "Generation data in the file, with prompts unless the deployment leaves them out; true "
            "unless given."
        ),
    )


MAX_LORA_SCALE = 4.0
"""Sliders, which are trained to be used at any scale, go from -4 to 4 (Gandikota et al., Concept
Sliders, 2023); other LoRAs break images well below."""


class LoraInput(_Edge):
    """A LoRA, which gives images a style or shows a subject."""

    source: Annotated[str, Field(min_length=1)] = Field(
        description=(
            "An http or https URL of a safetensors file, or the name of a LoRA of the deployment."
        ),
        examples=["https://app.example/style.safetensors", "style"],
    )
    scale: (
        Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)] | None
    ) = Field(
        default=None,
        description="Strength of the effect: 0 is none, below 0 is the opposite; 1 unless given.",
        examples=[0.8],
    )
    sha256: Annotated[str, Field(pattern=SHA256)] | None = Field(
        default=None,
        description=(
            "Of the file, in hex. Another file is refused, and one that the worker has is not "
            "fetched again."
        ),
    )


MAX_CONTROL_SCALE = 2.0
"""diffusers names no limit; the demos of ControlNets go from 0 to 2."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ControlNetInput(_Edge):
    """A control image, whose shapes the generated image takes over."""

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description=(
            "What the image is, such as canny for edges. A refusal lists those of the model, and "
            "so does describe."
        ),
        examples=["canny"],
    )
    image: Annotated[str, Field(min_length=1)] = Field(
        description=(
            "The control image itself, ready for the net, named like `image`. It is fitted to the "
            "size to generate as `resize` says, and does not choose it."
        ),
        examples=["https://app.example/edges.png"],
    )
    scale: Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] | None = Field(
        default=None, description="Strength of the control: 0 is none; 1 unless given."
    )
    start: Share | None = Field(
        default=None, description="Share of the steps after which it begins; 0 unless given."
    )
    end: Share | None = Field(
        default=None, description="Share of the steps after which it ends; 1 unless given."
    )


class RefinerInput(_Edge):
    """A second model, which ends the denoising: num_inference_steps or high_noise_frac."""

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description=(
            "Which refiner of the deployment; the only one unless given. A refusal lists those of "
            "the model, and so does describe."
        ),
    )
    num_inference_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Steps of the refiner, after those of the model.",
        examples=[10],
    )
    high_noise_frac: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Share of the steps that the model runs; the refiner runs the others.",
        examples=[0.8],
    )


class JobInput(_Edge):
    """The `input` of a job.

    A field that is absent or null takes the model's default. A model has limits of its own for
    sizes, steps, guidance and number of images; a refusal names them.
    """

    model_config = ConfigDict(
        title="Input of a pixpod job",
        json_schema_extra={
            "examples": [
                {"model": "flux-schnell", "prompt": "a red circle on a blue background"},
                {
                    "model": "sdxl",
                    "prompt": "a lighthouse at dusk, oil on canvas",
                    "negative_prompt": "text, frame",
                    "width": 1216,
                    "height": 832,
                    "num_images": 2,
                    "seed": 7,
                    "output": {"format": "webp", "quality": 85},
                },
            ]
        },
    )

    api_version: Annotated[int, Field(ge=API_VERSION, le=API_VERSION)] | None = Field(
        default=None, description="Version of this contract; the only one unless given."
    )
    model: str = Field(
        description="Name of a model that the worker serves.", examples=["flux-dev", "sdxl", "sd15"]
    )
    prompt: Annotated[
        str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, pattern=NOT_BLANK)
    ] = Field(description="Text that the image shows.")
    prompt_2: Annotated[Text, Field(min_length=1)] | None = Field(
        default=None,
        description="For the second text encoder, FLUX and SDXL; the prompt unless given.",
    )
    negative_prompt: Text | None = Field(
        default=None,
        description=(
            "Text that the image avoids. It needs true_cfg_scale above 1 on FLUX, guidance_scale "
            "above 1 on others."
        ),
    )
    width: Side | None = Field(
        default=None,
        description="Pixels: a multiple of 16 on FLUX, of 8 on others.",
        examples=[1024],
    )
    height: Side | None = Field(
        default=None,
        description="Pixels: a multiple of 16 on FLUX, of 8 on others.",
        examples=[1024],
    )
    image: str | None = Field(
        default=None,
        description=(
            "Image to begin with: an http or https URL, a data: URI or base64 of a PNG, JPEG or "
            "WebP file. Its own size is generated, as far as the model serves it, unless width "
            "and height are given."
        ),
        examples=["https://app.example/photo.jpg"],
    )
    mask: str | None = Field(
        default=None,
        description=(
            "Grey image, named like image and of its shape: white is generated, black stays as it "
            "is, grey blends."
        ),
    )
    mask_blur: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="Pixels by which the mask's edges are softened; 0 unless given."
    )
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description=(
            "Share of the steps that run on the image: little changes it little. 0.6 unless given, "
            "1 with a mask."
        ),
        examples=[0.6],
    )
    resize: Annotated[Resize, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "How an image of another shape is fitted: cover crops it around its centre, contain "
            "repeats its outermost pixels as borders, stretch distorts it; cover unless given."
        ),
    )
    loras: list[LoraInput] | None = Field(
        default=None,
        description="LoRAs, whose effects add up; their order does not matter. See loras.md.",
    )
    controlnets: list[ControlNetInput] | None = Field(
        default=None,
        description="Control images, whose effects add up. See controlnets.md.",
    )
    refiner: RefinerInput | None = Field(
        default=None, description="SDXL only: a second model for the last steps. See refiner.md."
    )
    num_inference_steps: Count | None = Field(
        default=None, description="Denoising steps.", examples=[28]
    )
    guidance_scale: Number | None = Field(
        default=None,
        description="How closely to follow the prompt; refused by models distilled without it.",
        examples=[3.5],
    )
    true_cfg_scale: Annotated[Number, Field(ge=1)] | None = Field(
        default=None, description="FLUX only; above 1 it needs a negative_prompt."
    )
    max_sequence_length: Count | None = Field(
        default=None, description="FLUX only: tokens that the T5 encoder reads."
    )
    on_long_prompt: Literal["refuse", "truncate"] | None = Field(
        default=None,
        description="What to do with a prompt of more tokens than are read; refuse unless given.",
    )
    num_images: Count | None = Field(
        default=None, description="1 unless given, or as many as there are seeds."
    )
    seed: Seeds | None = Field(
        default=None,
        description=(
            "One for the first image, counted up for the others, or one for each image. Derived "
            "from the job's id unless given."
        ),
        examples=[42, [1, 2, 3]],
    )
    scheduler: str | None = Field(
        default=None,
        description=(
            "A class name of diffusers or a usual alias such as `DPM++ 2M Karras`; a refusal lists "
            "those of the model."
        ),
        examples=["EulerDiscreteScheduler", "DPM++ 2M Karras"],
    )
    quality: Annotated[Quality, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "max keeps the denoiser in 16 bits; default uses the precision that suits the GPU; "
            "turbo, FLUX only, skips steps that change little; default unless given. One that the "
            "deployment does not offer is refused."
        ),
    )
    deterministic: bool | None = Field(
        default=None, description="Run each image in a batch of its own; false unless given."
    )
    idempotency_key: Annotated[str, Field(pattern=IDEMPOTENCY_KEY)] | None = Field(
        default=None,
        description=(
            "Makes it safe to send a request twice: a later job with the same key is answered from "
            "the first one's stored result, without the GPU, and refused if it asks for something "
            "else. Jobs with one key at the same time may all run. Keys count per "
            "output.key_prefix. Seeds that are not given derive from the key. Only with delivery "
            "by s3, into the deployment's bucket: put, inline and directory keep no result."
        ),
        examples=["order-1234"],
    )
    webhook_url: str | None = Field(
        default=None,
        description=(
            "Receiver of the job's events: an https URL with a public address. See webhooks.md. "
            "The platform's own `webhook` stands beside `input`."
        ),
        examples=["https://app.example/pixpod"],
    )
    webhook_events: (
        Annotated[list[Annotated[WebhookEvent, Field(strict=False)]], Field(min_length=1)] | None
    ) = Field(
        default=None,
        description=(
            "Events that webhook_url gets; the ends of the job (completed, failed, cancelled) "
            "unless given."
        ),
        examples=[["started", "completed"]],
    )
    output: OutputInput | None = None


OBJECTS: Mapping[str, type[BaseModel]] = {"output": OutputInput, "refiner": RefinerInput}
"""Fields that are objects, and what they are."""

LISTS: Mapping[str, type[BaseModel]] = {"loras": LoraInput, "controlnets": ControlNetInput}
"""Fields that are lists of objects, and what their elements are."""


class ImageReply(BaseModel):
    """One image, with `url` and `key`, `path` and `key`, `key` alone, `data`, or none of these.

    `key` is alone in a bucket that has no links: a network volume of RunPod. None is present where
    the caller knows the place: at the image's `put_urls`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "dependentRequired": {"url": ["key"], "path": ["key"]},
            "not": {"anyOf": [{"required": ["url", "path"]}, {"required": ["data", "key"]}]},
        }
    )

    url: str | None = Field(default=None, description="May be a link that expires.")
    data: str | None = Field(default=None, description="The file as plain base64.")
    path: str | None = Field(default=None, description="On the worker's own disk.")
    key: str | None = Field(default=None, description="The image's name in the store.")
    seed: int = Field(ge=0, le=MAX_SEED, description="Gives the same image again.")
    width: int
    height: int
    content_type: str = Field(examples=["image/png"])
    size_bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the file, in hex.")


class ModelReply(BaseModel):
    """The model that really ran. `weights` names the source of its files."""

    name: str
    revision: str
    precision: str
    weights: str


class TimingsReply(BaseModel):
    """Milliseconds of each phase that ran, in the order in which phases begin."""

    fetch: float | None = None
    load: float | None = None
    queue: float | None = None
    onload: float | None = None
    adapt: float | None = None
    text_encode: float | None = None
    image_encode: float | None = None
    denoise: float | None = None
    refine: float | None = None
    decode: float | None = None
    encode: float | None = None
    upload: float | None = None
    total: float


class CostReply(BaseModel):
    """This job's share of the GPU; the platform's bill also has start and idle time."""

    gpu: str
    gpu_ms: float
    estimated_usd: float | None = Field(description="Null where no price is known.")
    basis: str = Field(description="Where the price comes from.")


class AdapterReply(BaseModel):
    """A LoRA that was used. `cached` is true if the worker had the file before the job."""

    name: str = Field(description="Of its file, or in the deployment.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of its file, in hex.")
    rank: int = Field(description="The highest of its layers.")
    layers: int
    scale: float
    cached: bool


class RefinerReply(BaseModel):
    """The refiner that ran the last `steps`, denoiser calls of one image; null without one."""

    name: str
    steps: int = Field(ge=1)


class WorkerReply(BaseModel):
    """`cold_start` is true in the first reply of a worker; `boot_ms` is by phase."""

    id: str
    cold_start: bool
    boot_ms: dict[str, float]
    images_served: int


class Reply(BaseModel):
    """The `output` of a job that succeeded."""

    api_version: Literal[1]
    images: list[ImageReply] = Field(description="In the order of their seeds.")
    model: ModelReply
    steps: int = Field(ge=1, description="Denoiser calls that made one image.")
    timings_ms: TimingsReply
    cost: CostReply
    worker: WorkerReply
    warnings: list[str]
    adapters: list[AdapterReply] = Field(description="The LoRAs that were used.")
    refiner: RefinerReply | None


class ServedModelReply(BaseModel):
    """A model that the worker serves."""

    name: str
    family: str
    licence: str
    revision: str | None
    modes: list[Mode]
    control_modes: list[Mode]
    """Modes that take controlnets."""
    control_types: list[str]
    """Types of controlnets that the worker has for the model."""
    refiners: list[str]
    """Names of the refiners that the worker has for the model."""
    qualities: list[Quality]
    schedulers: list[str]
    prompt_fields: list[str]
    defaults: Defaults
    """Null where the model has no such field."""
    limits: dict[str, int | float | None]
    """The limits of the catalog, `size_multiple_px`, of which both sides are multiples, and
    `max_loras` of one job.
    """


class ExtraReply(BaseModel):
    """Something that models are served with: a ControlNet or a refiner."""

    name: str
    kind: str
    family: str
    licence: str
    revision: str | None
    types: list[str]
    models: list[str]
    """The served models that it fits."""


class DescribeReply(BaseModel):
    """The `output` of a job whose input is `{"describe": true}`. It takes no GPU."""

    api_version: Literal[1]
    version: str = Field(description="Version of the worker.")
    request_schema_sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="Of the JSON Schema of inputs, in hex."
    )
    models: list[ServedModelReply]
    extras: list[ExtraReply]
    deliveries: list[Delivery] = Field(description="The default first.")
    loras: list[str] = Field(description="Names of the LoRAs that the deployment has.")
    not_supported: list[str] = Field(description="Fields that this version refuses.")


class ErrorReply(BaseModel):
    """Output of a failed job: `"<code>: <text>"`; the platform shows it as its `error`.

    The text of `invalid_input` and `not_supported` is JSON:
    `{"problems": [{"field", "value", "accepted", "hint"}]}`. `field` is a path of the payload, such
    as `output.quality` or, for an element of a list, `seed[1]`.
    """

    error: str = Field(pattern=r"^[a-z_]+: ")
    refresh_worker: bool | None = None
