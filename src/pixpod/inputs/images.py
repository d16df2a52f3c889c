"""Decoded images and masks of callers: 8-bit RGB or grey in sRGB, upright, without metadata."""

import io
import struct

import numpy as np
from PIL import Image, ImageChops, ImageCms

from pixpod.inputs.image_files import ImageFile, read_image_file, refused
from pixpod.job import RawImage, RawMask

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each orientation of EXIF."""


def decode_image(data: bytes) -> RawImage:
    """Return the pixels of a file. Raises Refused with ImageRefused.

    The largest image takes some seconds and several hundred MiB.
    """
    image = _decode(data, "RGB")
    return RawImage(width=image.width, height=image.height, pixels=image.tobytes())


def decode_mask(data: bytes) -> RawMask:
    """Return the pixels of a file in grey. Raises Refused with ImageRefused."""
    image = _decode(data, "L")
    return RawMask(width=image.width, height=image.height, pixels=image.tobytes())


def _decode(data: bytes, mode: str) -> Image.Image:
    """Names are bound again at each step, so that no more than two large images are held."""
    file = read_image_file(data)
    try:
        image = _load(file)
        profile = image.info.get("icc_profile")
        image = _in_8_bits(image)
        alpha = image.getchannel("A") if "A" in image.getbands() else None
        if alpha is not None:
            image = image.convert(image.mode.removesuffix("A"))
        if profile:
            image = _in_srgb(image, profile)
        image = _in_mode(image, "RGB")
        if alpha is not None:
            image.paste("white", mask=ImageChops.invert(alpha))
        image = _in_mode(image, mode)
        method = _UPRIGHT.get(file.orientation)
        return image if method is None else image.transpose(method)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as exc:
        accepted = f"a {file.format} image that can be decoded"
        raise refused(accepted, "one that is damaged") from exc


def _load(file: ImageFile) -> Image.Image:
    """Return a copy: Pillow's image of a WebP file keeps its decoder, with two canvases."""
    with Image.open(io.BytesIO(file.data), formats=(file.format,)) as image:
        if image.size != (file.width, file.height):
            raise refused("one size", "a file that states several")
        return image.copy()


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image in a mode of 8-bit channels. Pillow itself scales 16-bit colours."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return _in_mode(image, "LA" if image.mode == "LA" else "RGBA")
    return _in_mode(image, {"P": "RGB", "1": "L"}.get(image.mode, image.mode))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image itself if it has this mode; `convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded profile. One that is damaged or for other colours is ignored."""
    is_in_place = image.mode == "RGB"
    try:
        found = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
            inPlace=is_in_place,
        )
    except (ImageCms.PyCMSError, OSError):
        return image
    return image if is_in_place or found is None else found
