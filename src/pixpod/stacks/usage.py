"""Requests that use stacks: a table with an entry for each kind of extra."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixpod.catalog import ModelSpec
from pixpod.extras import DEPTH, ExtraKind, Extras, ExtraSpec, image_prompt_options
from pixpod.families import FamilySpec
from pixpod.job import (
    ControlOptions,
    GenerationRequest,
    InputImage,
    LoraSlots,
    PreprocessorOptions,
    RawImage,
    RefinerOptions,
    UpscalerOptions,
)
from pixpod.stacks.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The use of extras of one kind by a request.

    `add` makes a request use some of all that there are. `most` is the largest number that one may
    use, `in_studio` that of the preset `studio`. `is_named` says whether fields of a job use an
    extra, one of those that fit its model; `fields` returns those of a job that uses it and needs
    no file for that. `go_together` says whether one request may use these two. Any: JSON.
    """

    add: Callable[[GenerationRequest, Sequence[ExtraSpec], Extras], GenerationRequest]
    most: Callable[[FamilySpec], int]
    in_studio: int
    is_named: Callable[[Mapping[str, Any], ExtraSpec, Sequence[ExtraSpec]], bool]
    fields: Callable[[ModelSpec, ExtraSpec], Mapping[str, Any]] | None = None
    go_together: Callable[[ExtraSpec, ExtraSpec], bool] = lambda one, other: True


def _add_controls(
    request: GenerationRequest, nets: Sequence[ExtraSpec], extras: Extras
) -> GenerationRequest:
    image = _black_image(request.width, request.height)
    controls = (
        ControlOptions(
            net=net.name, scale=1.0, start=0.0, end=1.0, union_mode=net.modes.get(net.types[0])
        )
        for net in nets
    )
    return replace(
        request,
        controls=tuple(controls),
        conditions=replace(request.conditions, controls=(image,) * len(nets)),
    )


def _add_estimator(
    request: GenerationRequest, estimators: Sequence[ExtraSpec], extras: Extras
) -> GenerationRequest:
    """Have it make the last control image; without any, that of a net that sees depth."""
    estimator = estimators[0]
    if not request.controls:
        nets = [extra for extra in extras.values() if DEPTH in extra.types][:1]
        request = _add_controls(request, nets, extras)
    if not request.controls:
        return request  # no request can use it
    preprocessor = PreprocessorOptions(
        type=DEPTH, estimator=estimator.name, size_px=estimator.size_px
    )
    *others, last = request.controls
    image = _black_image(estimator.size_px or 0, estimator.size_px or 0)
    images = (*[None] * len(others), image.raw)
    return replace(
        request,
        controls=(*others, replace(last, preprocessor=preprocessor)),
        conditions=replace(request.conditions, estimator_images=images),
    )


def _add_image_prompt(
    request: GenerationRequest, adapters: Sequence[ExtraSpec], extras: Extras
) -> GenerationRequest:
    prompt = image_prompt_options(adapters[0], extras, 1, 1.0)
    images = (_black_image(prompt.size_px, prompt.size_px),)
    conditions = replace(request.conditions, prompt_images=images)
    return replace(request, image_prompt=prompt, conditions=conditions)


def _add_refiner(
    request: GenerationRequest, refiners: Sequence[ExtraSpec], extras: Extras
) -> GenerationRequest:
    """Have a refiner run one step more than the request has."""
    sampling = request.sampling
    return replace(
        request,
        sampling=replace(sampling, num_inference_steps=sampling.num_inference_steps + 1),
        refiner=RefinerOptions(name=refiners[0].name, num_inference_steps=1),
    )


def _is_named_net(fields: Mapping[str, Any], net: ExtraSpec, fitting: Sequence[ExtraSpec]) -> bool:
    """Return whether a net is the first one for a type of control image."""
    types = {each.get("type") for each in fields.get("controlnets") or ()}
    nets = [each for each in fitting if each.kind is net.kind]
    return any(net is next(n for n in nets if kind in n.types) for kind in types & {*net.types})


def _is_named_by(
    field: str,
) -> Callable[[Mapping[str, Any], ExtraSpec, Sequence[ExtraSpec]], bool]:
    def is_named(fields: Mapping[str, Any], extra: ExtraSpec, fitting: Sequence[ExtraSpec]) -> bool:
        """Return whether an extra has the name in a field, or is the only one without a name."""
        if not fields.get(field):
            return False
        name = fields[field].get("name")
        first = next(each for each in fitting if each.kind is extra.kind)
        return extra.name == name or (name is None and extra is first)

    return is_named


def _is_preprocessing(
    fields: Mapping[str, Any], estimator: ExtraSpec, fitting: Sequence[ExtraSpec]
) -> bool:
    """Return whether an estimator is the one that makes control images of photographs."""
    first = next(each for each in fitting if each.kind is estimator.kind)
    controls = fields.get("controlnets") or ()
    is_used = any(each.get("type") == DEPTH and each.get("preprocess") for each in controls)
    return is_used and estimator is first


def _has_scale(
    fields: Mapping[str, Any], upscaler: ExtraSpec, fitting: Sequence[ExtraSpec]
) -> bool:
    """Return whether an upscaler is the first one of the scale in `upscale`."""
    upscalers = [each for each in fitting if each.kind is upscaler.kind]
    return fields.get("upscale") == upscaler.scale and upscaler is next(
        each for each in upscalers if each.scale == upscaler.scale
    )


def _refiner_fields(spec: ModelSpec, refiner: ExtraSpec) -> Mapping[str, Any]:
    """Return a refiner with a third of the model's steps, after these: 10 after 30."""
    if spec.step_counts:  # made for whole schedules of its own steps
        return {}
    steps = max(spec.defaults.num_inference_steps // 3, 1)
    return {"refiner": {"name": refiner.name, "num_inference_steps": steps}}


def _add_upscaler(
    request: GenerationRequest, upscalers: Sequence[ExtraSpec], extras: Extras
) -> GenerationRequest:
    scale = upscalers[0].scale
    assert scale is not None, "load_extras has checked it"
    return replace(request, upscaler=UpscalerOptions(name=upscalers[0].name, scale=scale))


def _are_of_one_pipeline(one: ExtraSpec, other: ExtraSpec) -> bool:
    """Return whether a pipeline takes both nets; some take union nets alone."""
    spec = one.family.controlnet if one.family else None
    return one.is_union == other.is_union or spec is None or not spec.union_pipelines


def _max_refiners(family: FamilySpec) -> int:
    return 1 if family.refiner else 0


def _max_adapters(family: FamilySpec) -> int:
    return 1 if family.image_prompt else 0


def _max_estimators(family: FamilySpec) -> int:
    return 1 if family.controlnet else 0


def _max_controls(family: FamilySpec) -> int:
    return family.controlnet.max_controls if family.controlnet else 0


def _black_image(width: int, height: int) -> InputImage:
    raw = RawImage(width=width, height=height, pixels=bytes(3 * width * height))
    digest = hashlib.sha256(f"black {width}x{height}".encode()).hexdigest()
    return InputImage(raw=raw, digest=digest)


_IMAGE_PROMPT = Usage(
    add=_add_image_prompt,
    most=_max_adapters,
    in_studio=0,
    is_named=_is_named_by("ip_adapter"),
)

USAGES: Mapping[ExtraKind, Usage | None] = {
    ExtraKind.CONTROLNET: Usage(
        add=_add_controls,
        most=_max_controls,
        in_studio=1,
        is_named=_is_named_net,
        go_together=_are_of_one_pipeline,
    ),
    ExtraKind.REFINER: Usage(
        add=_add_refiner,
        most=_max_refiners,
        in_studio=1,
        is_named=_is_named_by("refiner"),
        fields=_refiner_fields,
    ),
    ExtraKind.DEPTH_ESTIMATOR: Usage(
        add=_add_estimator, most=_max_estimators, in_studio=0, is_named=_is_preprocessing
    ),
    ExtraKind.IMAGE_ENCODER: None,
    ExtraKind.IP_ADAPTER: _IMAGE_PROMPT,
    ExtraKind.REDUX: _IMAGE_PROMPT,
    ExtraKind.UPSCALER: Usage(
        add=_add_upscaler,
        most=lambda family: 1,
        in_studio=0,
        is_named=_has_scale,
    ),
}
"""None for a kind that no request names: another extra brings it along."""


def can_be_named(extra: ExtraSpec) -> bool:
    """Return whether a request, and so a stack, names an extra of this kind."""
    return USAGES[extra.kind] is not None


def stack_request(
    stack: Stack,
    spec: ModelSpec,
    extras: Extras,
    **changes: Any,  # noqa: ANN401 - types differ
) -> GenerationRequest:
    """Return a request that uses everything in a stack, but for the files of LoRAs.

    Its slots for LoRAs are the largest of their rank: in all layers. `changes` are those of
    `ModelSpec.default_request`.
    """
    request = spec.default_request(**changes)
    for kind, usage in USAGES.items():
        named = [extras[name] for name in stack.extras if extras[name].kind is kind]
        if usage and named:
            request = usage.add(request, named, extras)
    if not stack.lora_rank:
        return request
    return with_slots(request, LoraSlots(rank=stack.lora_rank, is_whole=True))


def with_slots(request: GenerationRequest, slots: LoraSlots) -> GenerationRequest:
    """Return the request with slots for LoRAs."""
    return replace(request, conditions=replace(request.conditions, slots=slots))
