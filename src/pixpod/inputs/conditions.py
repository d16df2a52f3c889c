"""Fetches what a job names and completes its request with it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from pixpod.catalog import ModelSpec, Size
from pixpod.inputs.intake import ImageSource, Intake, read_all
from pixpod.inputs.lora_cache import LoraUse
from pixpod.inputs.loras import Loras
from pixpod.inputs.named import NamedImages, ParsedJob, control_path, reference_path
from pixpod.inputs.refusals import Refused, to_error
from pixpod.job import Conditions, GenerationRequest, RawImage, RawMask

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedJob:
    """A job whose request can be run. `warnings` are for the caller."""

    job: ParsedJob
    warnings: tuple[str, ...] = ()


async def complete(
    job: ParsedJob, spec: ModelSpec, intake: Intake, loras: Loras, use: LoraUse
) -> CompletedJob:
    """Fetch, decode and scale what a job names. LoRA files are there as long as `use` lasts.

    Raises UrlRefused, FetchFailed, FetchUnavailable, ImageRefused or WeightsRefused with all
    problems of the images or else of the LoRAs that it names, or AdapterUnusable.
    """
    completed = CompletedJob(job=job)
    if job.images is not None:
        completed = await _complete_images(job, job.images, spec, intake)
    if not job.loras:
        return completed
    files = await loras.get(job.loras, intake, use)
    request = completed.job.request
    conditions = replace(request.conditions, loras=files)
    done = replace(completed.job, request=replace(request, conditions=conditions))
    return replace(completed, job=done)


async def _complete_images(
    job: ParsedJob, named: NamedImages, spec: ModelSpec, intake: Intake
) -> CompletedJob:
    read = await _read(named, intake)
    size, conditions = await intake.run(_fit, named, read, job.request, spec)
    request = replace(job.request, width=size[0], height=size[1], conditions=conditions)
    warnings = _size_warning(named, read.image, size)
    return CompletedJob(job=replace(job, request=request), warnings=warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadImages:
    """The decoded images of a job, each at its own size."""

    image: RawImage | None
    mask: RawMask | None
    references: tuple[RawImage, ...]
    controls: tuple[RawImage, ...]
    prompts: tuple[RawImage, ...]


async def _read(named: NamedImages, intake: Intake) -> _ReadImages:
    from pixpod.inputs.images import decode_image, decode_mask  # numpy only where it is needed

    def reading(source: ImageSource, decode: Callable[[bytes], T]) -> Callable[[], Awaitable[T]]:
        return lambda: intake.read_image(source, decode)

    references = [reference_path(index) for index in range(len(named.references))]
    paths = [control_path(index) for index in range(len(named.controls))]
    listed = zip((*references, *paths), (*named.references, *named.controls), strict=True)
    sources = {**dict(listed), **named.prompts}
    if named.image is not None:
        sources["image"] = named.image
    reads: dict[str, Callable[[], Awaitable[RawImage | RawMask]]] = {
        path: reading(source, decode_image) for path, source in sources.items()
    }
    if named.mask is not None:
        reads["mask"] = reading(named.mask, decode_mask)
    found = await read_all(reads)
    images = {path: each for path, each in found.items() if isinstance(each, RawImage)}
    mask = found.get("mask")
    return _ReadImages(
        image=images.get("image"),
        mask=mask if isinstance(mask, RawMask) else None,
        references=tuple(images[path] for path in references),
        controls=tuple(images[path] for path in paths),
        prompts=tuple(images[path] for path in named.prompts),
    )


def _fit(
    named: NamedImages, read: _ReadImages, request: GenerationRequest, spec: ModelSpec
) -> tuple[Size, Conditions]:
    """Scale all images, which takes up to a second. Raises ImageRefused.

    The size of `request` counts without an image, which else has one of its own.
    """
    from pixpod.inputs.fitting import (
        choose_size,
        fit_estimator_image,
        fit_image,
        fit_mask,
        fit_prompt_image,
    )

    checks = _Checks()
    image, mask, prompt = read.image, read.mask, request.image_prompt
    size = (request.width, request.height)
    fitted_mask = None
    if image is not None:
        own = (image.width, image.height)
        given = (named.width, named.height)
        size = checks("image", lambda: choose_size(given, own, spec)) or own
        if mask is not None:
            blur_px = named.mask_blur_px
            fitted_mask = checks("mask", lambda: fit_mask(mask, own, size, named.resize, blur_px))
    checks.raise_refusals()
    controls = tuple(fit_image(each, size, named.resize) for each in read.controls)
    return size, Conditions(
        image=fit_image(image, size, named.resize) if image is not None else None,
        mask=fitted_mask,
        references=tuple(fit_image(each, size, named.resize) for each in read.references),
        controls=controls,
        estimator_images=tuple(
            fit_estimator_image(image.raw, options.preprocessor.size_px)
            if options.preprocessor and options.preprocessor.size_px
            else None
            for image, options in zip(controls, request.controls, strict=True)
        ),
        prompt_images=()
        if prompt is None
        else tuple(fit_prompt_image(each, prompt.size_px, spec.family) for each in read.prompts),
    )


class _Checks:
    """Collects the refusals of several checks."""

    def __init__(self) -> None:
        self._refusals: dict[str, Refused] = {}

    def __call__(self, field: str, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except Refused as refused:
            self._refusals[field] = refused
            return None

    def raise_refusals(self) -> None:
        if self._refusals:
            raise to_error(self._refusals)


def _size_warning(named: NamedImages, image: RawImage | None, size: Size) -> tuple[str, ...]:
    """Return a warning for a size that nobody has asked for."""
    is_asked = named.width is not None and named.height is not None
    if image is None or is_asked or size == (image.width, image.height):
        return ()
    return (
        f"image: it has {image.width}x{image.height} pixels, and {size[0]}x{size[1]} are "
        "generated, a size that the model serves",
    )
