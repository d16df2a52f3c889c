"""The pipeline of a request and the denoiser calls that it really takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod.catalog import ModelSpec, Size
from pixpod.families import FamilySpec
from pixpod.job import GenerationRequest, LoraSlots, Mode, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The pipeline and denoiser calls that generate the images of one request.

    `pipeline` is the name of a diffusers class. `num_calls` counts the denoiser calls of one image.
    `nets` are the ControlNets of the request's controls, in their order.
    `slots` are those for LoRAs, None without any.
    """

    pipeline: str
    mode: Mode
    size: Size
    num_calls: int
    nets: tuple[str, ...] = ()
    slots: LoraSlots | None = None


def pipelines_of(
    family: FamilySpec, *, has_controls: bool, is_union: bool = False
) -> Mapping[Mode, str]:
    """Return the pipeline class for each mode that the family has, with or without controls.

    `is_union`: the nets are told the types of their images.
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
    """Return the pipeline and the denoiser calls of a request to this model.

    Raises KeyError for a mode, a control or a scheduler that the model's family does not have.
    """
    scheduler = spec.family.schedulers[request.sampling.scheduler]
    is_union = any(control.union_mode is not None for control in request.controls)
    pipelines = pipelines_of(spec.family, has_controls=bool(request.controls), is_union=is_union)
    return Method(
        pipeline=pipelines[request.mode],
        mode=request.mode,
        size=(request.width, request.height),
        num_calls=scheduler.num_calls(num_steps(spec.family, request.sampling)),
        nets=tuple(control.net for control in request.controls),
        slots=request.conditions.slots,
    )
