"""Values that travel through a worker, from the parsed job to its result.

No pixel library, no tensor, no raw payload.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr


class ImageFormat(StrEnum):
    """File format of an image; the value is also the file's extension."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def content_type(self) -> str:
        return f"image/{self.value}"


class Delivery(StrEnum):
    """Destination of encoded images. `S3` is the deployment's bucket, `S3_CONFIG` the job's own."""

    S3 = "s3"
    INLINE = "inline"
    PUT = "put"
    S3_CONFIG = "s3_config"
    DIRECTORY = "directory"

    @property
    def is_callers(self) -> bool:
        """Return whether the job itself names the place."""
        return self in (Delivery.PUT, Delivery.S3_CONFIG)


class WebhookEvent(StrEnum):
    """A moment of a job that a webhook can report."""

    STARTED = "started"
    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True for the ends of a job, of which it has one."""
        return self not in (WebhookEvent.STARTED, WebhookEvent.PROGRESS)


class Mode(StrEnum):
    """Kind of generation by its input; diffusers has a pipeline class for each."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_IMAGE = "image_to_image"
    INPAINT = "inpaint"
    EDIT = "edit"


class Resize(StrEnum):
    """Ways to fit an image to another shape: crop it, add borders, or distort it."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class Quality(StrEnum):
    """Trade-off that a caller chooses between fidelity and speed.

    `MAX` keeps the denoiser in 16 bits, `DEFAULT` uses what suits the GPU, and `TURBO` skips
    denoiser calls that would change the image little.
    """

    MAX = "max"
    DEFAULT = "default"
    TURBO = "turbo"


class LongPrompt(StrEnum):
    """Ways to treat a text of more tokens than its encoder reads at once.

    `CHUNK` encodes it in several parts, whose embeddings are joined.
    """

    REFUSE = "refuse"
    TRUNCATE = "truncate"
    CHUNK = "chunk"


class SafetyAction(StrEnum):
    """Treatment of images that a classifier finds unsafe for work.

    `FLAG` only reports them, `BLUR` makes them unrecognisable, and `DROP` delivers nothing of them.
    """

    FLAG = "flag"
    BLUR = "blur"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Encoding and delivery of finished images.

    `quality` is 1 to 100 and None for PNG, which has none. `key_prefix` is relative to the
    deployment's own prefix. `name` begins the names of files, "" for none. `metadata` puts the
    generation data into the file. `fallback` allows the deployment's bucket where another place
    fails. With `safety` None, images are not classified. `controls` adds the control images that
    were made.
    """

    format: ImageFormat
    quality: int | None
    delivery: Delivery
    key_prefix: str
    name: str
    metadata: bool
    fallback: bool = True
    safety: SafetyAction | None = None
    controls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutUrl:
    """A destination of one image by HTTP PUT. URL and headers may carry a signature."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerBucket:
    """An S3 bucket of a job's own. `path` begins the keys in it, "" for none."""

    endpoint_url: str
    name: str
    access_id: str = field(repr=False)
    access_secret: SecretStr
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedText:
    """Parts of a text, each with its weight: 1 has no effect, 0 removes the part."""

    parts: tuple[tuple[str, float], ...] = field(repr=False)

    @property
    def text(self) -> str:
        return " ".join(text for text, _ in self.parts)

    @property
    def has_weights(self) -> bool:
        return any(weight != 1 for _, weight in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Texts of one request; None where the caller gave none. Kept out of `repr`.

    `weighted` has the texts with weights by the names of their fields, which are plain then, once
    the syntax was read.
    """

    prompt: str = field(repr=False)
    prompt_2: str | None = field(default=None, repr=False)
    negative_prompt: str | None = field(default=None, repr=False)
    weighted: Mapping[str, WeightedText] = field(default_factory=dict, repr=False)

    def parts_of(self, name: str) -> WeightedText:
        """Return the text that a field stands for; without weights, it is one part."""
        if name == "prompt_2" and self.prompt_2 is None:
            name = "prompt"
        text: str = getattr(self, name) or ""
        return self.weighted.get(name, WeightedText(parts=((text, 1.0),)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Reading of texts. `max_sequence_length` counts tokens, None for families with CLIP alone.

    `prompt_weights`: brackets and signs of a text are syntax. `clip_skip` counts the last layers
    of CLIP encoders that do not read the prompt. `num_chunks` is the length of all texts of a
    request that are read in chunks, once it is known.
    """

    max_sequence_length: int | None = None
    on_long_prompt: LongPrompt = LongPrompt.REFUSE
    prompt_weights: bool = False
    clip_skip: int = 0
    num_chunks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Arguments that shape the denoiser's calls. Scales are None where the model takes none.

    `num_inference_steps` are those of the whole schedule, a refiner's included. `strength`, above 0
    to 1, is the share of the steps that run on a given image; None without one.
    """

    num_inference_steps: int
    scheduler: str
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """Decoded pixels: 8-bit RGB, row by row, `3 * width * height` bytes."""

    width: int
    height: int
    pixels: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMask:
    """Decoded pixels of a mask: 8-bit grey, row by row, `width * height` bytes."""

    width: int
    height: int
    pixels: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputImage:
    """A caller's image at the size of the images to generate, or of an image encoder's input.

    `digest` is the SHA-256 of size and pixels in hex: equal images are encoded once.
    """

    raw: RawImage
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessorOptions:
    """The way in which a control image is made of the given one.

    `type` is that of the control image. `estimator` is the name of an extra, None for a type that
    needs none. It sees images whose sides are about `size_px`.
    """

    type: str
    estimator: str | None = None
    size_px: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """Influence of a control image: the net that sees it, and how strongly.

    `net` is the name of an extra. It applies from the share `start` of the steps to `end`.
    `union_mode` tells a net for several types which one the image is; None for other nets. Without
    a `preprocessor`, the given image is the control image.
    """

    net: str
    scale: float
    start: float
    end: float
    union_mode: int | None = None
    preprocessor: PreprocessorOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerOptions:
    """A second model that ends the denoising.

    `name` is that of an extra. `num_inference_steps` are its own: the last of the request's.
    """

    name: str
    num_inference_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerOptions:
    """A model that makes finished images larger. `name` is that of an extra."""

    name: str
    scale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptOptions:
    """Influence of images that are shown to the model as a prompt.

    `adapter` is the name of an extra, and `encoder` that of its image encoder, None for an adapter
    with one of its own. The encoder sees squares with sides of `size_px`. `text_tokens` are those
    that all images add to the text. `scale` is above 0.
    """

    adapter: str
    encoder: str | None
    num_images: int
    size_px: int
    text_tokens: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """The file of a LoRA on this disk. `sha256` of its bytes identifies it, whatever it is called.

    `field` is its place in the payload. `is_cached`: it was here before the job. `is_deployed`: it
    is one of the deployment's own.
    """

    field: str
    name: str
    sha256: str
    path: Path
    scale: float
    is_cached: bool = False
    is_deployed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSlots:
    """Room for LoRAs beside the denoiser's layers: requests with the same slots share batches.

    `rank` is for all LoRAs of an image together. `is_whole`: all layers have slots, not only those
    that LoRAs usually have.
    """

    rank: int
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Steers images beside their texts; fetched, decoded and scaled.

    White in the mask is generated, black stays as in `image`, and grey blends the two. `references`
    are images beside the first that are edited with it. `controls` are the images of the request's
    `controls`, in the same order, and `estimator_images` the same at the sizes of their
    preprocessors' estimators, None for those that have none. `prompt_images` are those of its image
    prompt, as its image encoder sees them. `loras` are in the order of their hashes, so that the
    order in which a caller lists them does not matter. `slots` are those that they need, once they
    are read for a model.
    """

    image: InputImage | None = None
    mask: RawMask | None = None
    references: tuple[InputImage, ...] = ()
    controls: tuple[InputImage, ...] = ()
    estimator_images: tuple[RawImage | None, ...] = ()
    prompt_images: tuple[InputImage, ...] = ()
    loras: tuple[LoraFile, ...] = ()
    slots: LoraSlots | None = None


def grey_conditions(width: int, height: int, *, has_mask: bool) -> Conditions:
    """Return a grey image, all of it masked, for requests that nobody looks at, as warm-ups."""
    num_pixels = width * height
    raw = RawImage(width=width, height=height, pixels=b"\x80" * 3 * num_pixels)
    mask = RawMask(width=width, height=height, pixels=b"\xff" * num_pixels) if has_mask else None
    return Conditions(image=InputImage(raw=raw, digest=f"grey {width}x{height}"), mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A complete and checked order for images, one per entry of `seeds`.

    `width` and `height` are those that are generated, before the upscaler. `num_references` counts
    images that are edited together with the first one. `isolated` images share no batch with other
    requests.
    """

    model: str
    mode: Mode
    quality: Quality
    width: int
    height: int
    sampling: Sampling
    text: TextOptions
    prompts: Prompts
    seeds: tuple[int, ...]
    num_references: int = 0
    controls: tuple[ControlOptions, ...] = ()
    refiner: RefinerOptions | None = None
    image_prompt: ImagePromptOptions | None = None
    upscaler: UpscalerOptions | None = None
    conditions: Conditions = Conditions()
    isolated: bool = False

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the finished images."""
        scale = self.upscaler.scale if self.upscaler else 1
        return self.width * scale, self.height * scale

    @property
    def needs_preparation(self) -> bool:
        """Return whether files or texts have to be read before the request can be queued."""
        is_chunked = self.text.on_long_prompt is LongPrompt.CHUNK
        return bool(self.conditions.loras) or is_chunked or self.text.prompt_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledStack:
    """The stack that a job names, and the fields of its payload that it has filled. JSON."""

    name: str
    fields: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One parsed job. Its files are its images and then the control images that it asks for.

    `id` is the platform's. `name` identifies the job in keys, seeds and events: the id, unless the
    caller gave an `idempotency_key`. `execution_timeout_s` is the platform's own limit, None if it
    has none. `put_urls`, one per file, and `bucket` are the places that the job names.
    `inputs_digest` identifies the files that it names, "" for none. `stack` is None for a job
    without one.
    """

    id: str
    name: str
    idempotency_key: str | None
    request: GenerationRequest
    output: OutputOptions
    execution_timeout_s: float | None = None
    put_urls: tuple[PutUrl, ...] = ()
    bucket: CallerBucket | None = None
    inputs_digest: str = ""
    stack: FilledStack | None = None

    @property
    def num_images(self) -> int:
        return len(self.request.seeds)

    @property
    def made_controls(self) -> tuple[int, ...]:
        """Indices of the controls whose images are files of the job."""
        if not self.output.controls:
            return ()
        listed = enumerate(self.request.controls)
        return tuple(index for index, control in listed if control.preprocessor)

    @property
    def seeds_of_files(self) -> tuple[int | None, ...]:
        """Seed of each file, None for control images."""
        return (*self.request.seeds, *(None for _ in self.made_controls))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One finished image and the seed that makes it again."""

    pixels: RawImage
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model that really ran. `weights` names the source of its files."""

    name: str
    revision: str
    precision: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUse:
    """A LoRA that was used. `rank` is the highest of its `layers`; `cached`: it was here before."""

    name: str
    sha256: str
    rank: int
    layers: int
    scale: float
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An engine's answer to a request: one image per seed, in the same order.

    `timings_ms` is the time that the request waited, by phase. `device_ms` is the request's own
    share of the GPU's time. `num_calls` counts the denoiser calls of one image. `controls` are the
    control images in the order of the request's controls.
    """

    images: tuple[ImageResult, ...]
    model: ModelIdentity
    timings_ms: dict[str, float]
    device_ms: float
    num_calls: int
    warnings: tuple[str, ...] = ()
    adapters: tuple[AdapterUse, ...] = ()
    controls: tuple[RawImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyVerdict:
    """A classifier's finding about one image. `score` is its probability of being unsafe."""

    nsfw: bool
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedImage:
    """An image that is not delivered because of its verdict; its pixels are gone."""

    index: int
    seed: int
    width: int
    height: int
    verdict: SafetyVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """Facts about the file of one image. `sha256` is the hex digest of its bytes.

    `index` is its place among the job's files. `seed` is None for a control image, and `verdict`
    for one that was not classified.
    """

    index: int
    seed: int | None
    width: int
    height: int
    format: ImageFormat
    sha256: str
    size_bytes: int
    verdict: SafetyVerdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage(ImageFile):
    """The file of one image, with its bytes."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedResult:
    """The files of a generated job, in the order of their indices, before they are delivered.

    `steps` counts the denoiser calls of one image. `dropped` are the images without a file.
    """

    images: tuple[EncodedImage, ...]
    model: ModelIdentity
    steps: int
    warnings: tuple[str, ...]
    adapters: tuple[AdapterUse, ...] = ()
    dropped: tuple[DroppedImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A delivered image: `key` with `url`, with `path` or alone, or `data`, or none of these.

    `key` is alone in a bucket without links. None is there if the caller knows the place. `data` is
    plain base64. `url` may carry a signature, hence is kept out of `repr`.
    """

    image: ImageFile
    key: str | None = None
    url: str | None = field(default=None, repr=False)
    data: str | None = field(default=None, repr=False)
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """The result of a job that was finished before, with fresh links."""

    images: tuple[StoredImage, ...]
    model: ModelIdentity
    steps: int
    warnings: tuple[str, ...]
    adapters: tuple[AdapterUse, ...] = ()
    dropped: tuple[DroppedImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One job's share of the GPU. `estimated_usd` is None if no price is known."""

    gpu: str
    gpu_ms: float
    estimated_usd: float | None
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """State of the worker at the end of a job."""

    id: str
    cold_start: bool
    boot_ms: dict[str, float]
    images_served: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Content of a successful reply. `steps` counts the denoiser calls of one image.

    `refiner`, `image_prompt`, `upscaler` and `stack` are None if the job has none. `controls` are
    the control images that the job asks for, by the indices of their controls.
    """

    images: tuple[StoredImage, ...]
    model: ModelIdentity
    steps: int
    timings_ms: dict[str, float]
    cost: Cost
    worker: WorkerReport
    warnings: tuple[str, ...]
    adapters: tuple[AdapterUse, ...] = ()
    dropped: tuple[DroppedImage, ...] = ()
    refiner: RefinerOptions | None = None
    image_prompt: ImagePromptOptions | None = None
    stack: FilledStack | None = None
    upscaler: UpscalerOptions | None = None
    controls: Mapping[int, StoredImage] = field(default_factory=dict)

    @property
    def files(self) -> tuple[StoredImage, ...]:
        """Images and control images in the order of their indices."""
        return (*self.images, *self.controls.values())

    def with_files(self, files: Sequence[StoredImage]) -> "JobResult":
        """Return the result with its files, in the same order, at other places."""
        images, controls = files[: len(self.images)], files[len(self.images) :]
        made = dict(zip(self.controls, controls, strict=True))
        return replace(self, images=tuple(images), controls=made)
