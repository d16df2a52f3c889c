"""The values that travel through a worker, from the parsed job to its result.

Standard library only: no pixel library, no tensor, no raw payload.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class ImageFormat(StrEnum):
    """How an image is encoded; the value is also the file's extension."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def content_type(self) -> str:
        return f"image/{self.value}"


class Delivery(StrEnum):
    """Where the encoded images go."""

    S3 = "s3"
    INLINE = "inline"
    PUT = "put"
    DIRECTORY = "directory"


class Quality(StrEnum):
    """What a caller would rather have: the picture as near to the published weights as they are
    here (16-bit), the usual, or speed by leaving out what changes little between steps.
    """

    MAX = "max"
    DEFAULT = "default"
    TURBO = "turbo"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What the caller wants done with the finished images.

    `quality` is 1 to 100 and None for PNG, which has none. `key_prefix` is relative to the
    deployment's own prefix. `metadata` puts the generation data, prompt included, into the file.
    """

    format: ImageFormat
    quality: int | None
    delivery: Delivery
    key_prefix: str
    metadata: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to draw: complete and checked, nothing left to default.

    One image per entry of `seeds`. Fields that a family does not know are None.
    """

    model: str
    prompt: str = field(repr=False)
    prompt_2: str | None = field(repr=False)
    negative_prompt: str | None = field(repr=False)
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None
    true_cfg_scale: float | None
    max_sequence_length: int | None
    scheduler: str
    seeds: tuple[int, ...]
    truncate_long_prompt: bool
    deterministic: bool
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One parsed job of the platform."""

    id: str
    request: GenerationRequest
    output: OutputOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """Decoded pixels: 8-bit RGB, row by row, `3 * width * height` bytes."""

    width: int
    height: int
    pixels: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What really ran. `weights` tells where its files came from."""

    name: str
    revision: str
    precision: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine made of a request: one image per seed, in the same order.

    `timings_ms` is what the request waited for; of what it had to itself or shared with others
    in its batch, `device_ms` is its own part of the card's time.
    """

    images: tuple[RawImage, ...]
    model: ModelIdentity
    timings_ms: dict[str, float]
    device_ms: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """One image as bytes of a file. `sha256` is the hex digest of `data`."""

    index: int
    seed: int
    width: int
    height: int
    format: ImageFormat
    sha256: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image where the caller can get it: exactly one of `url`, `data`, `path` is set.

    `data` is plain base64. `url` may carry a signature, hence is kept out of `repr`.
    """

    image: EncodedImage
    key: str | None = None
    url: str | None = field(default=None, repr=False)
    data: str | None = field(default=None, repr=False)
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The worker's own share of the card for one job; None where no price is known."""

    gpu: str
    gpu_ms: float
    estimated_usd: float | None
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """The state of the worker as its replies tell it."""

    id: str
    cold_start: bool
    boot_ms: dict[str, float]
    images_served: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """All that a successful reply says."""

    images: tuple[StoredImage, ...]
    model: ModelIdentity
    timings_ms: dict[str, float]
    cost: Cost
    worker: WorkerReport
    warnings: tuple[str, ...]
