"""Files that a job names, which are fetched before its request is complete."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pixpod.inputs.intake import ImageSource, InlineData
from pixpod.inputs.targets import Target
from pixpod.job import Job, Resize


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImages:
    """The image that a job begins with, others that are edited with it, its mask, control images,
    and those of its prompt by their places in the payload. `width` and `height` are as the job
    gives them; `mask_blur_px` is the radius by which the mask is blurred.
    """

    image: ImageSource | None
    mask: ImageSource | None
    references: tuple[ImageSource, ...] = ()
    controls: tuple[ImageSource, ...] = ()
    prompts: Mapping[str, ImageSource] = field(default_factory=dict)
    resize: Resize
    mask_blur_px: int
    width: int | None
    height: int | None

    def digest(self) -> str:
        """Return a SHA-256 in hex. Of a URL the query is left out, which may be a signature."""
        named = (self.image, self.mask, *self.controls)
        files = [_identity(each) if each else None for each in named]
        prompts = [_identity(each) for each in self.prompts.values()]
        references = [_identity(each) for each in self.references]
        others = (self.resize, self.mask_blur_px, self.width, self.height, prompts, *references)
        return hashlib.sha256(json.dumps([*files, *others]).encode()).hexdigest()


def reference_path(index: int) -> str:
    """Return the place in the payload of an image beside the first."""
    return f"image[{index + 1}]"


def control_path(index: int) -> str:
    """Return the place of a control image in the payload."""
    return f"controlnets[{index}].image"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedLora:
    """A LoRA by its URL or by its name in the deployment. `path` is its place in the payload.

    `sha256` is what the job says about the file, None if it says nothing.
    """

    path: str
    source: Target | str
    scale: float
    sha256: str | None

    def identity(self) -> tuple[str, float]:
        """Return what makes it another LoRA, or the same one at another scale."""
        return self.sha256 or _identity(self.source), self.scale


def inputs_digest(images: NamedImages | None, loras: Sequence[NamedLora]) -> str:
    """Return a SHA-256 in hex of all files that a job names, "" for none."""
    digest = images.digest() if images else ""
    if not loras:
        return digest
    listed = sorted(lora.identity() for lora in loras)
    return hashlib.sha256(json.dumps([digest, listed]).encode()).hexdigest()


def _identity(source: ImageSource | str) -> str:
    if isinstance(source, InlineData):
        return hashlib.sha256(source.data).hexdigest()
    return source if isinstance(source, str) else source.url.partition("?")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedJob(Job):
    """A job whose request lacks what is still to be fetched.

    With `images` its size and conditions are not final.
    """

    images: NamedImages | None = None
    loras: tuple[NamedLora, ...] = ()

    @property
    def names_files(self) -> bool:
        return self.images is not None or bool(self.loras)
