"""PNG files are compressed by the fastest level: what zlib's header and the size say of it."""

import io

import numpy as np
from PIL import Image

from pixpod.job import ImageFormat, RawImage
from pixpod.outputs.encoding import encode

FASTEST = 0
"""FLEVEL of RFC 1950, the two highest bits of zlib's second byte; 2 is the default level."""


def gradient(side):
    rising = np.linspace(0, 255, side)
    red, green = np.meshgrid(rising, rising)
    pixels = np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)
    return RawImage(width=side, height=side, pixels=pixels.tobytes())


def level_of(png):
    data = png[png.index(b"IDAT") + 4 :]
    return data[1] >> 6


def at_level(image, level):
    file = io.BytesIO()
    picture = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    picture.save(file, "PNG", compress_level=level)
    return file.getvalue()


def test_png_is_compressed_by_the_fastest_level():
    image = gradient(256)
    png = encode(
        image, index=0, seed=1, format=ImageFormat.PNG, quality=None, text=None, has_ai_mark=False
    ).data
    assert level_of(png) == FASTEST
    assert len(png) < len(image.pixels) / 2, "level 0 has the same header, and compresses nothing"
    for level in (2, 6, 9):
        assert level_of(at_level(image, level)) > FASTEST
