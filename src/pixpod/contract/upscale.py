"""Checks what a payload says about upscaling, and chooses the upscaler."""

from collections.abc import Collection, Iterator, Mapping

from pixpod.catalog import ModelSpec, Size
from pixpod.contract.job_input import JobInput
from pixpod.contract.problems import wrong
from pixpod.errors import Problem
from pixpod.extras import ExtraKind, Extras, ExtraSpec, extras_for
from pixpod.job import UpscalerOptions

MAX_IMAGE_PIXELS = 2**25
"""Largest upscaled image: 100 MB in memory. It is what `upscale: 4` makes of 2048x1024."""

MAX_JOB_PIXELS = 2**27
"""Pixels of all upscaled images of a job together."""


def upscalers_of(spec: ModelSpec, extras: Extras) -> Mapping[int, ExtraSpec]:
    """Return the upscalers that a model can be served with by their scales, the first of each."""
    found: dict[int, ExtraSpec] = {}
    for extra in extras_for(spec, extras, ExtraKind.UPSCALER):
        assert extra.scale is not None, "load_extras has checked it"
        found.setdefault(extra.scale, extra)
    return found


def check_upscale(
    given: JobInput, spec: ModelSpec, extras: Extras, malformed: Collection[str]
) -> Iterator[Problem]:
    """Yield the problems of the field. The size that an image chooses is not known yet."""
    scale = given.upscale
    if scale is None:
        return
    scales = sorted(upscalers_of(spec, extras))
    if scale not in scales:
        accepted = f"one of {', '.join(map(str, scales))}" if scales else "absent"
        why = "has no others here" if scales else "has no upscaler here"
        yield wrong("upscale", scale, f"{accepted}: {spec.name} {why}")
        return
    if {"width", "height", "image", "num_images", "seed"} & set(malformed):
        return
    if given.image is not None and (given.width is None or given.height is None):
        return
    size = (given.width or spec.defaults.width, given.height or spec.defaults.height)
    num_images = given.num_images or len(given.seed or [0])
    if reason := too_many_pixels((scale * size[0], scale * size[1]), num_images):
        yield wrong("upscale", scale, f"a smaller scale or size: {reason}")


def too_many_pixels(size: Size, num_images: int) -> str | None:
    """Return what is too large about so many images of an upscaled size, None if nothing is."""
    pixels = size[0] * size[1]
    if pixels > MAX_IMAGE_PIXELS:
        return f"an image may have {MAX_IMAGE_PIXELS} pixels, and {size[0]}x{size[1]} are {pixels}"
    if num_images * pixels > MAX_JOB_PIXELS:
        return (
            f"the images of a job may have {MAX_JOB_PIXELS} pixels, and {num_images} of "
            f"{size[0]}x{size[1]} have {num_images * pixels}"
        )
    return None


def build_upscaler(given: JobInput, spec: ModelSpec, extras: Extras) -> UpscalerOptions | None:
    """Return the upscaler of a payload without problems."""
    if given.upscale is None:
        return None
    return UpscalerOptions(name=upscalers_of(spec, extras)[given.upscale].name, scale=given.upscale)
