"""Types of replies. Generated from the JSON Schema of replies by `scripts/generate`."""

from typing import Literal, NotRequired, TypedDict


class ImageReply(TypedDict):
    """One image, with `url` and `key`, `path` and `key`, `key` alone, `data`, or none of these.

    `key` is alone in a bucket that has no links: a network volume of RunPod. None is present where
    the caller knows the place: in `put_urls`.
    """

    url: NotRequired[str]
    """May be a link that expires."""
    data: NotRequired[str]
    """The file as plain base64."""
    path: NotRequired[str]
    """On the worker's own disk."""
    key: NotRequired[str]
    """The image's name in the store."""
    width: int
    height: int
    content_type: NotRequired[str]
    size_bytes: NotRequired[int]
    sha256: NotRequired[str]
    """Of the file, in hex."""
    nsfw: NotRequired[bool]
    """Whether it is unsafe for work; absent if nobody has asked."""
    nsfw_score: NotRequired[float]
    """The classifier's probability of that."""
    seed: int
    """Gives the same image again."""


class ModelReply(TypedDict):
    """The model that really ran. `weights` names the source of its files."""

    name: str
    revision: str
    precision: str
    weights: str


class TimingsReply(TypedDict):
    """Milliseconds of each phase that ran, in the order in which phases begin."""

    fetch: NotRequired[float]
    load: NotRequired[float]
    queue: NotRequired[float]
    onload: NotRequired[float]
    adapt: NotRequired[float]
    preprocess: NotRequired[float]
    text_encode: NotRequired[float]
    image_encode: NotRequired[float]
    denoise: NotRequired[float]
    refine: NotRequired[float]
    decode: NotRequired[float]
    safety: NotRequired[float]
    upscale: NotRequired[float]
    encode: NotRequired[float]
    upload: NotRequired[float]
    total: float


class CostReply(TypedDict):
    """This job's share of the GPU; the platform's bill also has start and idle time."""

    gpu: str
    gpu_ms: float
    estimated_usd: float | None
    """Null where no price is known."""
    basis: str
    """Where the price comes from."""


class WorkerReply(TypedDict):
    """`cold_start` is true in the first reply of a worker; `boot_ms` is by phase."""

    id: str
    cold_start: bool
    boot_ms: dict[str, float]
    images_served: int


class AdapterReply(TypedDict):
    """A LoRA that was used. `cached` is true if the worker had the file before the job."""

    name: str
    """Of its file, or in the deployment."""
    sha256: str
    """Of its file, in hex."""
    rank: int
    """The highest of its layers."""
    layers: int
    scale: float
    cached: bool


class RefinerReply(TypedDict):
    """The refiner that ran the last `steps`, denoiser calls of one image; null without one."""

    name: str
    steps: int


class IpAdapterReply(TypedDict):
    """The image prompt that was used; null without one. `images` is their number.

    `encoder` is null for an adapter with an image encoder of its own.
    """

    name: str
    encoder: str | None
    images: int
    scale: float


class StackReply(TypedDict):
    """The stack of the job and the fields that it filled; null without one."""

    name: str
    fields: dict[str, object]
    """As the job might have given them."""


class UpscalerReply(TypedDict):
    """The upscaler that made the images larger; null without one."""

    name: str
    scale: int
    """How many times as long each side is."""


class ControlReply(TypedDict):
    """A control image that was made, with its place as images have it."""

    url: NotRequired[str]
    """May be a link that expires."""
    data: NotRequired[str]
    """The file as plain base64."""
    path: NotRequired[str]
    """On the worker's own disk."""
    key: NotRequired[str]
    """The image's name in the store."""
    width: int
    height: int
    content_type: NotRequired[str]
    size_bytes: NotRequired[int]
    sha256: NotRequired[str]
    """Of the file, in hex."""
    nsfw: NotRequired[bool]
    """Whether it is unsafe for work; absent if nobody has asked."""
    nsfw_score: NotRequired[float]
    """The classifier's probability of that."""
    index: int
    """Of its element in `controlnets`."""


class Reply(TypedDict):
    """The `output` of a job that succeeded."""

    api_version: Literal[1]
    images: list[ImageReply]
    """In the order of their seeds."""
    model: ModelReply
    steps: int
    """Denoiser calls that made one image."""
    timings_ms: TimingsReply
    cost: CostReply
    worker: WorkerReply
    warnings: list[str]
    adapters: list[AdapterReply]
    """The LoRAs that were used."""
    refiner: RefinerReply | None
    ip_adapter: IpAdapterReply | None
    stack: StackReply | None
    upscaler: UpscalerReply | None
    controls: list[ControlReply]
    """Control images that were made, if `output.controls` asks for them."""


class ErrorReply(TypedDict):
    """Output of a failed job: `"<code>: <text>"`; the platform shows it as its `error`.

    The text of `invalid_input` and `not_supported` is JSON: `{"problems": [{"field", "value",
    "accepted", "hint"}]}`. `field` is a path of the payload, such as `output.quality` or, for an
    element of a list, `seed[1]`.
    """

    error: str
    refresh_worker: NotRequired[bool]
