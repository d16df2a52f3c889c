"""How far the images of two sides are apart; they are compared as a client gets them."""

import base64
import io

import numpy as np
from PIL import Image


def decode(data: str) -> bytes:
    """An inline image of a reply as 8-bit RGB, row by row."""
    file = io.BytesIO(base64.b64decode(data, validate=True))
    return Image.open(file).convert("RGB").tobytes()


def levels_apart(left: bytes, right: bytes) -> int:
    """The most that any value of two images of one size differs, in levels of 255."""
    one, other = (np.frombuffer(pixels, dtype=np.uint8).astype(int) for pixels in (left, right))
    return int(np.abs(one - other).max())
