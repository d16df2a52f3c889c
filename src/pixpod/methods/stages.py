"""Stages of an image: which components each of them uses, and how much memory it works with."""

from dataclasses import dataclass, replace
from enum import StrEnum

from pixpod.catalog import ModelSpec
from pixpod.extras import Extras
from pixpod.families import GIB, FamilySpec
from pixpod.job import GenerationRequest, Mode
from pixpod.methods.batch_key import PIXELS_PER_TOKEN, latents_per_image, prompt_tokens
from pixpod.methods.method import Method, method_of
from pixpod.stacks import Stack, stack_request

IMAGE_MODES = frozenset({Mode.IMAGE_TO_IMAGE, Mode.INPAINT, Mode.EDIT})
"""Modes with a given image."""

_SQUARE_PX = 1024 * 1024
_SQUARE_TOKENS = _SQUARE_PX / PIXELS_PER_TOKEN

_ESTIMATE_GIB, _EDGES_GIB = 0.3, 0.4
"""For any control image, and more for 1024x1024. Depth Anything takes 0.2 GiB with 518 pixels, and
Canny's method 0.3 with 1024, measured on a CPU.
"""

_UPSCALE_GIB = 1.0
"""A tile of Swin2SR takes 0.7 GiB, measured on a CPU with 256 pixels; images come one by one."""


class StageName(StrEnum):
    """Names of stages as a reply's timings have them, in the order in which they run."""

    ADAPT = "adapt"
    PREPROCESS = "preprocess"
    TEXT_ENCODE = "text_encode"
    IMAGE_ENCODE = "image_encode"
    DENOISE = "denoise"
    REFINE = "refine"
    DECODE = "decode"
    UPSCALE = "upscale"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Needs of one stage on the device.

    `components` are those of the model, and extras. `image_bytes` are activations, and
    `slot_bytes` the slots for LoRAs, for each image of the batch.
    """

    name: StageName
    components: tuple[str, ...]
    fixed_bytes: int
    image_bytes: int = 0
    slot_bytes: int = 0

    def working_bytes(self, batch_size: int) -> int:
        """Return the bytes that the stage needs beside those of the components."""
        return self.fixed_bytes + (self.image_bytes + self.slot_bytes) * batch_size


def stages_of(spec: ModelSpec, method: Method) -> tuple[StagePlan, ...]:
    """Return the stages of a method in the order in which they run."""
    family, memory = spec.family, spec.family.working_memory
    width, height = method.size
    squares = width * height / _SQUARE_PX
    num_latents = (
        width * height / PIXELS_PER_TOKEN * latents_per_image(method.mode, method.num_references)
    )
    tokens = prompt_tokens(method.image_prompt) + num_latents
    fixed_bytes = round(memory.fixed_gib * GIB)
    uses_vae = method.mode in IMAGE_MODES or bool(method.nets)
    image_encode = StagePlan(
        name=StageName.IMAGE_ENCODE,
        components=(*((family.vae,) if uses_vae else ()), *_prompt_extras(method)),
        fixed_bytes=fixed_bytes + round(memory.encode_gib * squares * GIB),
    )
    adapt = StagePlan(name=StageName.ADAPT, components=(), fixed_bytes=0)
    denoise = StagePlan(
        name=StageName.DENOISE,
        components=(family.denoiser, *dict.fromkeys(method.nets), *_adapters(family, method)),
        fixed_bytes=fixed_bytes,
        image_bytes=round(memory.denoise_gib * tokens / _SQUARE_TOKENS * GIB),
    )
    refine = (
        (replace(denoise, name=StageName.REFINE, components=(method.refiner,)),)
        if method.refiner
        else ()
    )
    plans = (
        *((adapt,) if method.slots else ()),
        *_preprocess(method, squares),
        StagePlan(
            name=StageName.TEXT_ENCODE,
            components=family.text_encoders,
            fixed_bytes=round(memory.text_gib * GIB),
        ),
        *((image_encode,) if image_encode.components else ()),
        denoise,
        *refine,
        StagePlan(
            name=StageName.DECODE,
            components=(family.vae,),
            fixed_bytes=fixed_bytes,
            image_bytes=round(memory.decode_gib * squares * GIB),
        ),
        *_upscale(method),
    )
    if method.slots is None or family.lora is None:
        return plans
    slot_bytes = family.lora.slot_bytes(method.slots)  # they stay for the whole batch
    return tuple(replace(plan, slot_bytes=slot_bytes) for plan in plans)


def _preprocess(method: Method, squares: float) -> tuple[StagePlan, ...]:
    if not method.preprocessors:
        return ()
    estimators = (each.estimator for each in method.preprocessors if each.estimator)
    plan = StagePlan(
        name=StageName.PREPROCESS,
        components=tuple(dict.fromkeys(estimators)),
        fixed_bytes=round((_ESTIMATE_GIB + _EDGES_GIB * squares) * GIB),
    )
    return (plan,)


def _upscale(method: Method) -> tuple[StagePlan, ...]:
    if method.upscaler is None:
        return ()
    plan = StagePlan(
        name=StageName.UPSCALE,
        components=(method.upscaler,),
        fixed_bytes=round(_UPSCALE_GIB * GIB),
    )
    return (plan,)


def _prompt_extras(method: Method) -> tuple[str, ...]:
    """Return the extras that read an image prompt, in the order in which they do."""
    prompt = method.image_prompt
    return tuple(filter(None, (prompt.encoder, prompt.adapter))) if prompt else ()


def _adapters(family: FamilySpec, method: Method) -> tuple[str, ...]:
    """Return the adapter of an image prompt that the denoiser attends to."""
    spec = family.image_prompt
    return _prompt_extras(method)[-1:] if spec and not spec.extends_text else ()


def pipeline_for(spec: ModelSpec, method: Method, stage: StageName) -> tuple[str, tuple[str, ...]]:
    """Return the diffusers class whose parts a stage uses, and the ControlNets that it takes."""
    refiner = spec.family.refiner
    if stage is StageName.REFINE and refiner is not None:
        return refiner.pipeline, ()
    return method.pipeline, method.nets


def extras_of(spec: ModelSpec, request: GenerationRequest) -> tuple[str, ...]:
    """Return the names of the extras that a request to this model uses."""
    own = spec.family.component_names
    stages = stages_of(spec, method_of(spec, request))
    names = (name for stage in stages for name in stage.components if name not in own)
    return tuple(dict.fromkeys(names))


def stack_extras(stack: Stack, spec: ModelSpec, extras: Extras) -> tuple[str, ...]:
    """Return the names of the extras that a stack uses, also those that others need."""
    return extras_of(spec, stack_request(stack, spec, extras))
