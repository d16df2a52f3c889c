"""What a model and a deployment allow, checked field by field on well-formed input.

Each rule yields its problems and knows none of the others, so that all are found at once.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pixpod.catalog import Catalog, Family, ModelSpec
from pixpod.contract.problems import did_you_mean, wrong
from pixpod.contract.types import JobInput, OutputInput
from pixpod.errors import Problem
from pixpod.job import Delivery, ImageFormat, Quality
from pixpod.outputs.storage import clean_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What this deployment offers to its callers: models, the qualities of each, and ways of
    delivery, the default first.
    """

    models: Catalog
    qualities: Mapping[str, tuple[Quality, ...]]
    deliveries: tuple[Delivery, ...]


def find_model(name: str | None, offer: Offer) -> ModelSpec | Problem | None:
    """The spec, what is wrong with the name, or None for a name that was malformed already."""
    if name is None:
        return None
    if name in offer.models:
        return offer.models[name]
    served = sorted(offer.models)
    accepted = f"one of {', '.join(served)}" if served else "nothing: no model is served"
    return wrong("model", name, accepted, did_you_mean(name, served))


def check_values(
    given: JobInput, spec: ModelSpec, offer: Offer, malformed: Collection[str] = ()
) -> Iterator[Problem]:
    """What is wrong with the fields of `given`, in which those named `malformed` are None.

    A rule about two fields is not applied where one is malformed: it may well be kept once
    that one is set right.
    """
    yield from _check_size(given, spec, malformed)
    yield from _check_counts(given, spec)
    yield from _check_guidance(given, spec, malformed)
    yield from _check_text(given, spec)
    yield from _check_quality(given, spec, offer)
    yield from _check_output(given.output or OutputInput(), offer, malformed)


def _check_size(given: JobInput, spec: ModelSpec, malformed: Collection[str]) -> Iterator[Problem]:
    limits, multiple = spec.limits, spec.family.size_multiple_px
    is_pair = not {"width", "height"} & set(malformed)
    for field, side in (("width", given.width), ("height", given.height)):
        if side is None:
            continue
        is_pair = is_pair and limits.min_side_px <= side <= limits.max_side_px
        if not limits.min_side_px <= side <= limits.max_side_px:
            accepted = f"{limits.min_side_px} to {limits.max_side_px} pixels for {spec.name}"
            yield wrong(field, side, accepted)
        elif side % multiple:
            below = side - side % multiple
            nearest = f"nearest are {below} and {below + multiple}"
            yield wrong(field, side, f"a multiple of {multiple} for {spec.name}", nearest)
    width, height = given.width or spec.defaults.width, given.height or spec.defaults.height
    if is_pair and width * height > limits.max_pixels:
        accepted = f"at most {limits.max_pixels} pixels in all for {spec.name}"
        field = "height" if given.width is None else "width"
        yield wrong(field, f"{width}x{height}", accepted, _nearest_size(width, height, spec))


def _nearest_size(width: int, height: int, spec: ModelSpec) -> str | None:
    """A size of about the same shape within the pixels of the model; None where there is none."""
    limits, multiple = spec.limits, spec.family.size_multiple_px
    shrink = math.sqrt(limits.max_pixels / (width * height))
    sides = [int(side * shrink) // multiple * multiple for side in (width, height)]
    if min(sides) < limits.min_side_px:
        return None
    return f"nearest of this shape is {sides[0]}x{sides[1]}"


def _check_counts(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    limits = spec.limits
    steps, num_images, seeds = given.num_inference_steps, given.num_images, given.seed
    if steps is not None and steps > limits.max_steps:
        accepted = f"at most {limits.max_steps} for {spec.name}"
        yield wrong("num_inference_steps", steps, accepted)
    if num_images is not None and num_images > limits.max_images:
        yield wrong("num_images", num_images, f"at most {limits.max_images} for {spec.name}")
    if seeds is None or len(seeds) == 1:
        return
    if num_images is not None and len(seeds) != num_images:
        yield wrong("seed", seeds, f"one seed, or {num_images} as num_images says")
    elif len(seeds) > limits.max_images:
        yield wrong("seed", seeds, f"at most {limits.max_images} seeds for {spec.name}")


def _check_guidance(
    given: JobInput, spec: ModelSpec, malformed: Collection[str]
) -> Iterator[Problem]:
    guidance, highest = given.guidance_scale, spec.limits.max_guidance
    if guidance is not None and not spec.takes_guidance:
        accepted = f"absent: {spec.name} is distilled to run without guidance"
        yield wrong("guidance_scale", guidance, accepted)
    elif guidance is not None and guidance > highest:
        yield wrong("guidance_scale", guidance, f"0 to {highest:g} for {spec.name}")
    if spec.family is Family.FLUX:
        yield from _check_true_cfg(given, highest, malformed)
        return
    if given.true_cfg_scale is not None:
        accepted = "absent: only FLUX models have it"
        yield wrong("true_cfg_scale", given.true_cfg_scale, accepted, "use guidance_scale")
    if not given.negative_prompt or "guidance_scale" in malformed:  # many clients send an empty one
        return
    effective = spec.defaults.guidance_scale if guidance is None else guidance
    if not spec.takes_guidance:
        accepted = f"absent: it has no effect on {spec.name}, which runs without guidance"
        yield wrong("negative_prompt", given.negative_prompt, accepted)
    elif effective is not None and effective <= 1:
        accepted = "absent: it has no effect unless guidance_scale is above 1"
        yield wrong("negative_prompt", given.negative_prompt, accepted)


def _check_true_cfg(
    given: JobInput, highest: float, malformed: Collection[str]
) -> Iterator[Problem]:
    scale = given.true_cfg_scale
    if scale is not None and scale > highest:
        yield wrong("true_cfg_scale", scale, f"1 to {highest:g}")
    is_on = scale is not None and scale > 1
    if is_on and given.negative_prompt is None and "negative_prompt" not in malformed:
        hint = "give a negative_prompt, which may be empty"
        yield wrong("true_cfg_scale", scale, "1 or absent without a negative_prompt", hint)
    if given.negative_prompt and not is_on and "true_cfg_scale" not in malformed:
        accepted = "absent: it has no effect on FLUX unless true_cfg_scale is above 1"
        yield wrong("negative_prompt", given.negative_prompt, accepted)


def _check_text(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    length, longest = given.max_sequence_length, spec.limits.max_sequence_length
    if length is not None and longest is None:
        yield wrong("max_sequence_length", length, "absent: only FLUX models have it")
    elif length is not None and longest is not None and length > longest:
        yield wrong("max_sequence_length", length, f"at most {longest} for {spec.name}")
    if given.prompt_2 is not None and spec.family is Family.SD15:
        yield wrong("prompt_2", given.prompt_2, "absent: SD 1.5 has one text encoder")
    if given.scheduler is not None and given.scheduler not in spec.schedulers:
        accepted = f"one of {', '.join(spec.schedulers)}"
        hint = did_you_mean(given.scheduler, spec.schedulers)
        yield wrong("scheduler", given.scheduler, accepted, hint)


def _check_quality(given: JobInput, spec: ModelSpec, offer: Offer) -> Iterator[Problem]:
    offered = offer.qualities[spec.name]
    if given.quality is None or given.quality in offered:
        return
    accepted = f"one of {', '.join(offered)} for {spec.name}, as this deployment is set up"
    yield wrong("quality", given.quality.value, accepted, _WHY_NOT.get(given.quality))


_WHY_NOT: Mapping[Quality, str] = {
    Quality.MAX: "its weights are held in 8 bits here",
    Quality.TURBO: "only FLUX models that draw in many steps gain by it",
}


def _check_output(
    given: OutputInput, offer: Offer, malformed: Collection[str]
) -> Iterator[Problem]:
    if given.delivery is not None and given.delivery not in offer.deliveries:
        accepted = f"one of {', '.join(offer.deliveries)}, as this deployment is set up"
        yield wrong("output.delivery", given.delivery.value, accepted)
    is_png = given.format in (None, ImageFormat.PNG) and "output.format" not in malformed
    if given.quality is not None and is_png:
        hint = "set output.format to jpeg or webp"
        yield wrong("output.quality", given.quality, "absent: PNG is lossless", hint)
    if given.key_prefix is not None:
        try:
            clean_prefix(given.key_prefix)
        except ValueError as exc:
            yield wrong(
                "output.key_prefix", given.key_prefix, str(exc).removeprefix("accepted are ")
            )
