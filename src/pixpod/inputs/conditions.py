"""Fetches what a job names and completes its request with it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from pixpod.catalog import ModelSpec, Size
from pixpod.inputs.intake import Intake, read_all
from pixpod.inputs.lora_cache import LoraUse
from pixpod.inputs.loras import Loras
from pixpod.inputs.named import NamedImages, ParsedJob
from pixpod.inputs.refusals import Refused, to_error
from pixpod.job import Conditions, RawImage, RawMask

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
    image, mask = await _read(named, intake)
    own = (image.width, image.height)
    size, conditions = await intake.run(_fit, named, image, mask, spec)
    request = replace(job.request, width=size[0], height=size[1], conditions=conditions)
    warnings = _size_warning(named, own, size)
    return CompletedJob(job=replace(job, request=request), warnings=warnings)


async def _read(named: NamedImages, intake: Intake) -> tuple[RawImage, RawMask | None]:
    from pixpod.inputs.images import decode_image, decode_mask  # numpy only where it is needed

    reads: dict[str, Callable[[], Awaitable[RawImage | RawMask]]] = {
        "image": lambda: intake.read_image(named.image, decode_image)
    }
    if (source := named.mask) is not None:
        reads["mask"] = lambda: intake.read_image(source, decode_mask)
    found = await read_all(reads)
    image, mask = found["image"], found.get("mask")
    assert isinstance(image, RawImage) and not isinstance(mask, RawImage)
    return image, mask


def _fit(
    named: NamedImages, image: RawImage, mask: RawMask | None, spec: ModelSpec
) -> tuple[Size, Conditions]:
    """Scale image and mask, which takes up to a second. Raises ImageRefused."""
    from pixpod.inputs.fitting import choose_size, fit_image, fit_mask

    own = (image.width, image.height)
    checks = _Checks()
    size = checks("image", lambda: choose_size((named.width, named.height), own, spec)) or own
    fitted_mask = None
    if mask is not None:
        blur_px = named.mask_blur_px
        fitted_mask = checks("mask", lambda: fit_mask(mask, own, size, named.resize, blur_px))
    checks.raise_refusals()
    return size, Conditions(image=fit_image(image, size, named.resize), mask=fitted_mask)


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


def _size_warning(named: NamedImages, own: Size, size: Size) -> tuple[str, ...]:
    """Return a warning for a size that nobody has asked for."""
    is_asked = named.width is not None and named.height is not None
    if is_asked or size == own:
        return ()
    return (
        f"image: it has {own[0]}x{own[1]} pixels, and {size[0]}x{size[1]} are generated, a size "
        "that the model serves",
    )
