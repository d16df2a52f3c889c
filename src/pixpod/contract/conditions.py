"""Checks what a payload says about conditions, and finds what has to be fetched for them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from pixpod.catalog import DEFAULT_STRENGTHS, ModelSpec
from pixpod.contract.controls import elements
from pixpod.contract.image_prompt import prompt_images
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import wrong
from pixpod.contract.refiner import num_refined, total_steps
from pixpod.errors import Problem
from pixpod.inputs.intake import ImageSource, parse_source
from pixpod.inputs.named import NamedImages, control_path, reference_path
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets
from pixpod.job import Mode, Quality, Resize, Sampling
from pixpod.methods import num_steps

_NEEDED: Mapping[Mode, tuple[str, ...]] = {Mode.INPAINT: ("image", "mask")}
"""Fields that a model must have if this is the first of its modes."""

_NEED_IMAGE = ("mask", "strength", "resize")


def mode_of(given: JobInput, spec: ModelSpec) -> Mode:
    """Return the mode that the fields of a payload ask for; the model may not have it."""
    if given.image is None:
        return Mode.TEXT_TO_IMAGE
    if given.mask is not None:
        return Mode.INPAINT
    return Mode.EDIT if Mode.EDIT in spec.family.pipelines else Mode.IMAGE_TO_IMAGE


def strength_of(given: JobInput, spec: ModelSpec) -> float | None:
    """Return the strength of a payload or of its mode, None for a mode that has none."""
    default = DEFAULT_STRENGTHS.get(mode_of(given, spec))
    return None if default is None else given.strength or default


def check_images(given: JobInput, spec: ModelSpec, malformed: Collection[str]) -> Iterator[Problem]:
    """Yield the problems of the fields around the image, apart from what it and the mask name."""
    mode = mode_of(given, spec)
    if mode not in spec.family.pipelines:
        needed = _NEEDED.get(spec.family.default_mode, ())
        missing = [field for field in needed if getattr(given, field) is None]
        for field in missing:
            if field not in malformed:
                yield wrong(field, None, f"required by {spec.name}")
        if not missing:
            field = "mask" if mode is Mode.INPAINT else "image"
            yield wrong(field, _value_of(given, field), f"absent: {spec.name} takes none")
        return
    most = spec.family.max_edited if mode is Mode.EDIT else 1
    if len(given.image or ()) > most:
        accepted = f"at most {most} images" if most > 1 else "one image"
        yield wrong("image", given.image, f"{accepted} for {spec.name}")
    if given.image is None and "image" not in malformed:
        for field in _NEED_IMAGE:
            if field == "resize" and (given.controlnets or "controlnets" in malformed):
                continue
            if (value := getattr(given, field)) is not None:
                yield wrong(field, value, "absent without an image")
    if given.mask_blur is not None and given.mask is None and "mask" not in malformed:
        yield wrong("mask_blur", given.mask_blur, "absent without a mask")
    if given.image is not None:
        yield from _check_strength(given, spec)
        if given.quality is Quality.TURBO:
            accepted = "default or max with an image: diffusers skips steps of plain requests only"
            yield wrong("quality", given.quality.value, accepted)


def _value_of(given: JobInput, field: str) -> object:
    """Return the value of a field; that of an image alone, which may be given without a list."""
    value = getattr(given, field)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def num_references(given: JobInput) -> int:
    """Return the number of images beside the first that a payload names for an edit."""
    return max(0, len(given.image or ()) - 1)


def num_calls_of(given: JobInput, spec: ModelSpec) -> tuple[int, int]:
    """Return the denoiser calls of an image, and those of them that are before a refiner's.

    1 where a field is wrong that decides about them.
    """
    scheduler = spec.scheduler_specs.get(given.scheduler or spec.defaults.scheduler)
    steps, refined = num_steps(spec.family, _sampling(given, spec)), num_refined(given, spec)
    if scheduler is None or steps <= refined:
        return 1, 1
    num_calls = scheduler.num_calls(steps)
    return num_calls, num_calls - refined


def _sampling(given: JobInput, spec: ModelSpec) -> Sampling:
    return Sampling(
        num_inference_steps=total_steps(given, spec),
        scheduler=given.scheduler or spec.defaults.scheduler,
        strength=strength_of(given, spec),
    )


def _check_strength(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    if given.strength is not None and strength_of(given, spec) is None:
        accepted = f"absent: {spec.name} edits an image as a whole"
        yield wrong("strength", given.strength, accepted)
        return
    sampling = _sampling(given, spec)
    steps, refined = sampling.num_inference_steps, num_refined(given, spec)
    if 0 <= refined < steps and num_steps(spec.family, sampling) <= refined:
        least = next(
            share
            for share in (thousandths / 1000 for thousandths in range(1, 1001))
            if num_steps(spec.family, replace(sampling, strength=share)) > refined
        )
        before = f" before {refined} of the refiner" if refined else ""
        accepted = f"at least {least:g}, which is one of {steps} steps{before}"
        yield wrong("strength", given.strength, accepted)


def find_images(given: JobInput, targets: Targets) -> tuple[NamedImages | None, list[Problem]]:
    """Return the images that a payload names, None if it names none or one is refused."""
    first, *others = given.image or (None,)
    texts = {"image": first, "mask": given.mask}
    references = {reference_path(n): each for n, each in enumerate(others)}
    controls = {control_path(index): each.image for index, each in elements(given)}
    prompts = prompt_images(given)
    sources: dict[str, ImageSource] = {}
    problems = []
    for field, text in {**texts, **references, **controls, **prompts}.items():
        try:
            if text is not None:
                sources[field] = parse_source(text, targets)
        except Refused as refused:
            problems.append(refused.problem(field))
    if problems or not sources:
        return None, problems
    named = NamedImages(
        image=sources.get("image"),
        mask=sources.get("mask"),
        references=tuple(sources[field] for field in references),
        controls=tuple(sources[field] for field in controls),
        prompts={field: sources[field] for field in prompts},
        resize=given.resize or Resize.COVER,
        mask_blur_px=given.mask_blur or 0,
        width=given.width,
        height=given.height,
    )
    return named, []
