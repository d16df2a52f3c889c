"""Checks what a payload says about conditions, and finds what has to be fetched for them."""

import math
from collections.abc import Collection, Iterator, Mapping

from pixpod.catalog import ModelSpec
from pixpod.contract.problems import wrong
from pixpod.contract.types import JobInput
from pixpod.errors import Problem
from pixpod.inputs.intake import ImageSource, parse_source
from pixpod.inputs.named import NamedImages
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets
from pixpod.job import Mode, Quality, Resize, Sampling
from pixpod.methods import num_steps

DEFAULT_STRENGTHS: Mapping[Mode, float] = {Mode.IMAGE_TO_IMAGE: 0.6, Mode.INPAINT: 1.0}

_NEED_IMAGE = ("mask", "strength", "resize")


def mode_of(given: JobInput) -> Mode:
    """Return the mode that the fields of a payload ask for."""
    if given.image is None:
        return Mode.TEXT_TO_IMAGE
    return Mode.IMAGE_TO_IMAGE if given.mask is None else Mode.INPAINT


def strength_of(given: JobInput) -> float | None:
    """Return the strength of a payload or of its mode."""
    return given.strength or DEFAULT_STRENGTHS.get(mode_of(given))


def check_images(given: JobInput, spec: ModelSpec, malformed: Collection[str]) -> Iterator[Problem]:
    """Yield the problems of the fields around the image, apart from what it and the mask name."""
    mode = mode_of(given)
    if given.image is not None and mode not in spec.family.pipelines:
        field = "image" if mode is Mode.IMAGE_TO_IMAGE else "mask"
        yield wrong(field, getattr(given, field), f"absent: {spec.name} takes none")
        return
    if given.image is None and "image" not in malformed:
        for field in _NEED_IMAGE:
            if (value := getattr(given, field)) is not None:
                yield wrong(field, value, "absent without an image")
    if given.mask_blur is not None and given.mask is None and "mask" not in malformed:
        yield wrong("mask_blur", given.mask_blur, "absent without a mask")
    if given.image is not None:
        yield from _check_strength(given, spec)
        if given.quality is Quality.TURBO:
            accepted = "default or max with an image: diffusers skips steps of plain requests only"
            yield wrong("quality", given.quality.value, accepted)


def _check_strength(given: JobInput, spec: ModelSpec) -> Iterator[Problem]:
    steps = given.num_inference_steps or spec.defaults.num_inference_steps
    sampling = Sampling(
        num_inference_steps=steps,
        scheduler=spec.defaults.scheduler,
        strength=strength_of(given),
    )
    if num_steps(spec.family, sampling) < 1:
        least = math.ceil(1000 / steps) / 1000
        accepted = f"at least {least:g}, which is one of {steps} steps"
        yield wrong("strength", given.strength, accepted)


def find_images(given: JobInput, targets: Targets) -> tuple[NamedImages | None, list[Problem]]:
    """Return the images that a payload names, None if it names none or one is refused."""
    sources: dict[str, ImageSource] = {}
    problems = []
    for field in ("image", "mask"):
        text = getattr(given, field)
        try:
            if text is not None:
                sources[field] = parse_source(text, targets)
        except Refused as refused:
            problems.append(refused.problem(field))
    if problems or "image" not in sources:
        return None, problems
    named = NamedImages(
        image=sources["image"],
        mask=sources.get("mask"),
        resize=given.resize or Resize.COVER,
        mask_blur_px=given.mask_blur or 0,
        width=given.width,
        height=given.height,
    )
    return named, []
