"""The `output` of a job, as JSON: a reply or an error."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixpod.contract.scalars import MAX_SEED


class FileReply(BaseModel):
    """A file and its place."""

    model_config = ConfigDict(
        json_schema_extra={
            "dependentRequired": {
                "url": ["key", "sha256"],
                "path": ["key", "sha256"],
                "key": ["sha256"],
                "data": ["sha256"],
                "sha256": ["content_type", "size_bytes"],
                "nsfw": ["nsfw_score"],
            },
            "not": {"anyOf": [{"required": ["url", "path"]}, {"required": ["data", "key"]}]},
            "anyOf": [
                {"required": ["sha256"]},
                {"required": ["nsfw"], "properties": {"nsfw": {"const": True}}},
            ],
        }
    )

    url: str | None = Field(default=None, description="May be a link that expires.")
    data: str | None = Field(default=None, description="The file as plain base64.")
    path: str | None = Field(default=None, description="On the worker's own disk.")
    key: str | None = Field(default=None, description="The image's name in the store.")
    width: int
    height: int
    content_type: str | None = Field(default=None, examples=["image/png"])
    size_bytes: int | None = None
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="Of the file, in hex."
    )
    nsfw: bool | None = Field(
        default=None, description="Whether it is unsafe for work; absent if nobody has asked."
    )
    nsfw_score: float | None = Field(
        default=None, ge=0, le=1, description="The classifier's probability of that."
    )


class ImageReply(FileReply):
    """One image, with `url` and `key`, `path` and `key`, `key` alone, `data`, or none of these.

    `key` is alone in a bucket that has no links: a network volume of RunPod. None is present where
    the caller knows the place: in `put_urls`.
    """

    seed: int = Field(ge=0, le=MAX_SEED, description="Gives the same image again.")


class ControlReply(FileReply):
    """A control image that was made, with its place as images have it."""

    index: int = Field(ge=0, description="Of its element in `controlnets`.")


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
    preprocess: float | None = None
    text_encode: float | None = None
    image_encode: float | None = None
    denoise: float | None = None
    refine: float | None = None
    decode: float | None = None
    safety: float | None = None
    upscale: float | None = None
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


class IpAdapterReply(BaseModel):
    """The image prompt that was used; null without one. `images` is their number.

    `encoder` is null for an adapter with an image encoder of its own.
    """

    name: str
    encoder: str | None
    images: int = Field(ge=1)
    scale: float


class StackReply(BaseModel):
    """The stack of the job and the fields that it filled; null without one."""

    name: str
    fields: dict[str, Any] = Field(description="As the job might have given them.")


class UpscalerReply(BaseModel):
    """The upscaler that made the images larger; null without one."""

    name: str
    scale: int = Field(ge=2, description="How many times as long each side is.")


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
    ip_adapter: IpAdapterReply | None
    stack: StackReply | None
    upscaler: UpscalerReply | None
    controls: list[ControlReply] = Field(
        description="Control images that were made, if `output.controls` asks for them."
    )


class ErrorReply(BaseModel):
    """Output of a failed job: `"<code>: <text>"`; the platform shows it as its `error`.

    The text of `invalid_input` and `not_supported` is JSON:
    `{"problems": [{"field", "value", "accepted", "hint"}]}`. `field` is a path of the payload, such
    as `output.quality` or, for an element of a list, `seed[1]`.
    """

    error: str = Field(pattern=r"^[a-z_]+: ")
    refresh_worker: bool | None = None
