"""What a job names and has to be fetched before its request is complete."""

import hashlib
import json
from dataclasses import dataclass

from pixpod.inputs.intake import ImageSource, InlineData
from pixpod.job import Job, Resize


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImages:
    """The image that a job begins with, and its mask. `width` and `height` are as the job gives
    them; `mask_blur_px` is the radius by which the mask is blurred.
    """

    image: ImageSource
    mask: ImageSource | None
    resize: Resize
    mask_blur_px: int
    width: int | None
    height: int | None

    def digest(self) -> str:
        """Return a SHA-256 in hex. Of a URL the query is left out, which may be a signature."""
        files = [_identity(each) if each else None for each in (self.image, self.mask)]
        others = (self.resize, self.mask_blur_px, self.width, self.height)
        return hashlib.sha256(json.dumps([*files, *others]).encode()).hexdigest()


def _identity(source: ImageSource) -> str:
    if isinstance(source, InlineData):
        return hashlib.sha256(source.data).hexdigest()
    return source.url.partition("?")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedJob(Job):
    """A job whose request lacks what is still to be fetched.

    With `images` its size and conditions are not final.
    """

    images: NamedImages | None = None

    @property
    def names_files(self) -> bool:
        return self.images is not None
