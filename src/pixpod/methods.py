"""Methods of running a request: pipeline, denoiser calls, key of its batch, and stages. No torch.

Payload rules, planner, concurrency, progress and deadline read these facts from here alone.
"""

from dataclasses import dataclass
from enum import StrEnum

from pixpod.catalog import ModelSpec, Size
from pixpod.families import GIB, FamilySpec, Guidance
from pixpod.job import GenerationRequest, Mode, Quality, Sampling, TextOptions

PIXELS_PER_TOKEN = 256
"""VAE stride 8 and patches of 2, both squared. UNets are counted in the same way."""

_SQUARE_PX = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The pipeline and denoiser calls that generate the images of one request.

    `pipeline` is the name of a diffusers class. `num_calls` counts the denoiser calls of one image.
    """

    pipeline: str
    size: Size
    num_calls: int


def method_of(spec: ModelSpec, request: GenerationRequest) -> Method:
    """Return how a request to this model runs.

    The request is one that the model serves: a mode or a scheduler that its family lacks is a
    KeyError.
    """
    scheduler = spec.family.schedulers[request.sampling.scheduler]
    return Method(
        pipeline=spec.family.pipelines[request.mode],
        size=(request.width, request.height),
        num_calls=scheduler.num_calls(request.sampling.num_inference_steps),
    )


def is_guided(scale: float | None) -> bool:
    """Return whether the denoiser runs for the negative prompt as well; how strong is no matter."""
    return scale is not None and scale > 1


def uses_negative_prompt(family: FamilySpec, sampling: Sampling) -> bool:
    """Return whether a request's sampling reads the negative prompt."""
    if family.guidance is Guidance.EMBEDDED:
        return is_guided(sampling.true_cfg_scale)
    return is_guided(sampling.guidance_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """Everything that requests of one batch have in common.

    It holds whatever shapes or scales the denoiser's call. Prompts and seeds differ freely.
    """

    model: str
    mode: Mode
    quality: Quality
    width: int
    height: int
    sampling: Sampling
    text: TextOptions


def batch_key_of(request: GenerationRequest) -> BatchKey:
    """Return the key of the batches that a request may be part of."""
    return BatchKey(
        model=request.model,
        mode=request.mode,
        quality=request.quality,
        width=request.width,
        height=request.height,
        sampling=request.sampling,
        text=request.text,
    )


def num_tokens(key: BatchKey) -> int:
    """Count the latent and text tokens of one image."""
    return key.width * key.height // PIXELS_PER_TOKEN + (key.text.max_sequence_length or 0)


class StageName(StrEnum):
    """Names of stages as a reply's timings have them, in the order in which they run."""

    TEXT_ENCODE = "text_encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Needs of one stage on the device. `image_bytes` is for each image of the batch."""

    name: StageName
    components: tuple[str, ...]
    fixed_bytes: int
    image_bytes: int = 0

    def working_bytes(self, batch_size: int) -> int:
        """Return the bytes for activations, beside those of the components."""
        return self.fixed_bytes + self.image_bytes * batch_size


def stages_of(spec: ModelSpec, method: Method) -> tuple[StagePlan, ...]:
    """Return the stages of a method in the order in which they run."""
    family, memory = spec.family, spec.family.working_memory
    width, height = method.size
    squares = width * height / _SQUARE_PX
    fixed_bytes = round(memory.fixed_gib * GIB)
    return (
        StagePlan(
            name=StageName.TEXT_ENCODE,
            components=family.text_encoders,
            fixed_bytes=round(memory.text_gib * GIB),
        ),
        StagePlan(
            name=StageName.DENOISE,
            components=(family.denoiser,),
            fixed_bytes=fixed_bytes,
            image_bytes=round(memory.denoise_gib * squares * GIB),
        ),
        StagePlan(
            name=StageName.DECODE,
            components=(family.vae,),
            fixed_bytes=fixed_bytes,
            image_bytes=round(memory.decode_gib * squares * GIB),
        ),
    )
