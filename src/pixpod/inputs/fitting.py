"""Fits images of callers to the size of the images to generate."""

import hashlib

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from pixpod.catalog import ModelSpec, Size
from pixpod.errors import ImageRefused
from pixpod.families import FamilySpec
from pixpod.inputs.refusals import Refused
from pixpod.job import InputImage, RawImage, RawMask, Resize

_LANCZOS = Image.Resampling.LANCZOS

PATCH_PX = 14
"""Pixels of one patch of Depth Anything."""


def choose_size(given: tuple[int | None, int | None], image: Size, spec: ModelSpec) -> Size:
    """Return the size to generate: as given, else that of the image as far as the model serves it.

    A side that is not given follows from the other one and the image's shape. Sides are rounded
    down to the family's multiple. Raises Refused for a size that the model does not serve.
    """
    width, height = given
    if width is not None and height is not None:
        return width, height
    size = _served(_scaled(given, image, spec), spec)
    if not spec.is_size_served(*size):
        limits = spec.limits
        accepted = (
            f"an image of at least {limits.min_side_px} pixels a side for {spec.name}, and at most "
            f"{limits.max_side_px // limits.min_side_px} times as long as wide"
        )
        value = f"{image[0]}x{image[1]}"
        raise Refused(ImageRefused, accepted, value=value, hint="give width and height")
    return size


def _scaled(
    given: tuple[int | None, int | None], image: Size, spec: ModelSpec
) -> tuple[float, float]:
    """Return the image's shape at the given side, else as large as the model serves at most."""
    width, height = image
    if given[0] is not None:
        return given[0], height * given[0] / width
    if given[1] is not None:
        return width * given[1] / height, given[1]
    limits = spec.limits
    shrink = min(
        1.0,
        limits.max_side_px / max(image),
        (limits.max_pixels / (width * height)) ** 0.5,
    )
    return width * shrink, height * shrink


def _served(size: tuple[float, float], spec: ModelSpec) -> Size:
    multiple = spec.family.size_multiple_px
    width, height = (int(side + 1e-6) // multiple * multiple for side in size)
    return width, height


def fit_image(image: RawImage, size: Size, resize: Resize) -> InputImage:
    """Return an image of this size; one that has it already keeps its pixels."""
    return _as_input(_fit(_as_rgb(image), size, resize))


def fit_prompt_image(image: RawImage, side: int, family: FamilySpec) -> InputImage:
    """Return an image as an image encoder of the family sees it, a square with this side.

    The encoder's own preprocessing scales the shorter side and then crops the longer one around its
    centre, to whole pixels. The same part of the image is scaled alone here: the other one may be
    a thousand times as long.
    """
    spec = family.image_prompt
    assert spec is not None, "the contract refuses image prompts of other families"
    rgb = _as_rgb(image)
    box = None
    if spec.resize is Resize.COVER:
        shorter = min(rgb.size)
        (left, right), (top, bottom) = (_crop(each, shorter, side) for each in rgb.size)
        box = (left, top, right, bottom)
    return _as_input(rgb.resize((side, side), Image.Resampling.BICUBIC, box=box))


def fit_estimator_image(image: RawImage, side: int) -> RawImage:
    """Return an image as a depth estimator sees it, scaled as little as possible.

    One side is about as long as `side`, and both are multiples of its patches.
    """
    scale = min((side / image.width, side / image.height), key=lambda each: abs(1 - each))
    width, height = (
        max(1, round(scale * each / PATCH_PX)) * PATCH_PX for each in (image.width, image.height)
    )
    scaled = _as_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
    return RawImage(width=width, height=height, pixels=scaled.tobytes())


def _crop(length: int, shorter: int, side: int) -> tuple[float, float]:
    """Return where the crop of a scaled side begins and ends in the image itself."""
    scaled = side * length // shorter
    begin = (scaled - side) // 2
    return begin * length / scaled, (begin + side) * length / scaled


def _as_rgb(image: RawImage) -> Image.Image:
    return Image.frombytes("RGB", (image.width, image.height), image.pixels)


def _as_input(image: Image.Image) -> InputImage:
    (width, height), pixels = image.size, image.tobytes()
    digest = hashlib.sha256(f"{width}x{height} ".encode() + pixels).hexdigest()
    return InputImage(raw=RawImage(width=width, height=height, pixels=pixels), digest=digest)


def fit_mask(mask: RawMask, image: Size, size: Size, resize: Resize, blur_px: int) -> RawMask:
    """Return the mask of an image that is fitted in the same way. Raises Refused."""
    if not _has_shape(mask, image):
        accepted = f"a mask of the image's size or shape, {image[0]}x{image[1]}"
        raise Refused(ImageRefused, accepted, value=f"{mask.width}x{mask.height}")
    grey = Image.frombytes("L", (mask.width, mask.height), mask.pixels)
    if grey.size != image:
        grey = grey.resize(image, Image.Resampling.BILINEAR)
    grey = _fit(grey, size, resize)
    if blur_px:
        grey = grey.filter(ImageFilter.GaussianBlur(blur_px))
    if grey.getextrema() == (0, 0):
        accepted = "a mask that is not all black: white is generated"
        raise Refused(ImageRefused, accepted, value="a mask that is all black")
    return RawMask(width=size[0], height=size[1], pixels=grey.tobytes())


def _has_shape(mask: RawMask, image: Size) -> bool:
    """Return whether a mask that is scaled to the image's width has its height within a pixel."""
    return abs(mask.height * image[0] / mask.width - image[1]) <= 1


def _fit(image: Image.Image, size: Size, resize: Resize) -> Image.Image:
    if image.size == size:
        return image
    match resize:
        case Resize.STRETCH:
            return image.resize(size, _LANCZOS)
        case Resize.COVER:
            return ImageOps.fit(image, size, _LANCZOS)
        case Resize.CONTAIN:
            return _with_borders(ImageOps.contain(image, size, _LANCZOS), size)


def _with_borders(image: Image.Image, size: Size) -> Image.Image:
    """Centre an image; borders repeat its outermost pixels."""
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    borders = ((top, size[1] - image.height - top), (left, size[0] - image.width - left))
    pixels = np.asarray(image)
    padding = (*borders, (0, 0))[: pixels.ndim]
    return Image.fromarray(np.pad(pixels, padding, mode="edge"))
