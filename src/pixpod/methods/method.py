"""The pipelines of a request and the denoiser calls that it really takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pixpod.catalog import ModelSpec, Size
from pixpod.families import FamilySpec
from pixpod.job import (
    Conditions,
    GenerationRequest,
    ImagePromptOptions,
    LoraSlots,
    Mode,
    PreprocessorOptions,
    Sampling,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The pipelines and denoiser calls that generate the images of one request.

    `pipeline` is the name of a diffusers class. `calls` has the denoiser calls of one image, and
    then those of the refiner if there is one, whose name is `refiner`.
    `nets` are the ControlNets of the request's controls, in their order, and `preprocessors` those
    that make control images.
    `image_prompt` is None without one, and so are `slots` for LoRAs. `upscaler` is the name of what
    makes the finished images larger.
    """

    pipeline: str
    mode: Mode
    size: Size
    calls: tuple[int, ...]
    num_references: int = 0
    nets: tuple[str, ...] = ()
    preprocessors: tuple[PreprocessorOptions, ...] = ()
    refiner: str | None = None
    image_prompt: ImagePromptOptions | None = None
    slots: LoraSlots | None = None
    upscaler: str | None = None

    @property
    def num_calls(self) -> int:
        """Return the denoiser calls of one image, a refiner's included."""
        return sum(self.calls)


def pipelines_of(
    family: FamilySpec, *, has_controls: bool, is_union: bool = False
) -> Mapping[Mode, str]:
    """Return the pipeline class for each mode that the family has, with or without controls.

    `is_union`: the nets take the types of their images, too.
    """
    if not has_controls:
        return family.pipelines
    if family.controlnet is None:
        return {}
    return (is_union and family.controlnet.union_pipelines) or family.controlnet.pipelines


def num_steps(family: FamilySpec, sampling: Sampling) -> int:
    """Return the steps that a strength leaves, as diffusers' pipelines count them."""
    steps = sampling.num_inference_steps
    if sampling.strength is None:
        return steps
    wanted = min(steps * sampling.strength, steps)
    return steps - int(steps - (wanted if family.runs_started_steps else int(wanted)))


def method_of(spec: ModelSpec, request: GenerationRequest) -> Method:
    """Return the pipelines and the denoiser calls of a request to this model.

    Raises KeyError for a mode, a control or a scheduler that the model's family does not have.
    """
    scheduler, refiner = spec.family.schedulers[request.sampling.scheduler], request.refiner
    num_calls = scheduler.num_calls(num_steps(spec.family, request.sampling))
    refined = (refiner.num_inference_steps,) if refiner else ()
    is_union = any(control.union_mode is not None for control in request.controls)
    pipelines = pipelines_of(spec.family, has_controls=bool(request.controls), is_union=is_union)
    return Method(
        pipeline=pipelines[request.mode],
        mode=request.mode,
        size=(request.width, request.height),
        calls=(num_calls - sum(refined), *refined),
        num_references=request.num_references,
        nets=tuple(control.net for control in request.controls),
        preprocessors=tuple(each.preprocessor for each in request.controls if each.preprocessor),
        refiner=refiner.name if refiner else None,
        image_prompt=request.image_prompt,
        slots=request.conditions.slots,
        upscaler=request.upscaler.name if request.upscaler else None,
    )


def refining(request: GenerationRequest) -> GenerationRequest:
    """Return what a refiner is asked for: the last steps without LoRAs, controls and image prompt.

    Those are made for the model that runs before. The request has a refiner, and the result has a
    strength that leaves its steps.
    """
    assert request.refiner is not None
    steps = request.sampling.num_inference_steps
    # in the middle of the range that is rounded down to its steps
    strength = (request.refiner.num_inference_steps + 0.5) / steps
    return replace(
        request,
        mode=Mode.IMAGE_TO_IMAGE,
        sampling=replace(request.sampling, strength=strength),
        controls=(),
        image_prompt=None,
        upscaler=None,
        conditions=Conditions(),
    )
