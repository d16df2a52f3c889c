"""Makes images unrecognisable."""

from PIL import Image

from pixpod.job import RawImage

_LONG_SIDE_PX = 10
"""Spots that are left of an image: nobody can restore more."""


def blur(raw: RawImage) -> RawImage:
    """Return an image of the same size that shows soft spots of its colours only."""
    size = (raw.width, raw.height)
    shrink = _LONG_SIDE_PX / max(size)
    width, height = (max(round(side * shrink), 1) for side in size)
    small = Image.frombytes("RGB", size, raw.pixels).resize((width, height), Image.Resampling.BOX)
    blurred = small.resize(size, Image.Resampling.BICUBIC)
    return RawImage(width=raw.width, height=raw.height, pixels=blurred.tobytes())
