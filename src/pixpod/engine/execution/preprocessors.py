"""Ways to make a control image of a given one, on the model's device: a table by type."""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from pixpod.engine.execution.conditions.base import to_levels
from pixpod.engine.model import LoadedModel
from pixpod.errors import NumericalFault
from pixpod.job import PreprocessorOptions, RawImage

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and deviations of ImageNet, as the preprocessors of Depth Anything have them."""

Preprocessor = Callable[[LoadedModel, PreprocessorOptions, RawImage, RawImage | None], torch.Tensor]
"""Returns 8-bit levels of (height, width) for an image. The last argument is the same image as an
estimator sees it, None for a type without one.
"""


def find_edges(
    model: LoadedModel, options: PreprocessorOptions, image: RawImage, seen: RawImage | None
) -> torch.Tensor:
    """Return white edges on black by Canny's method, with kornia's thresholds.

    It sees luminance only: between equally bright colours there is no edge.
    """
    from kornia.filters import canny  # takes a second, and most workers never need it

    _, edges = canny(_pixels(image, model.device))
    return (255 * edges[0, 0]).to(torch.uint8)


def estimate_depth(
    model: LoadedModel, options: PreprocessorOptions, image: RawImage, seen: RawImage | None
) -> torch.Tensor:
    """Return relative depth, white where it is nearest, as transformers' own pipeline does.

    Raises NumericalFault.
    """
    assert options.estimator is not None and seen is not None, "the contract chooses one"
    estimator = model.extras[options.estimator].module
    mean, std = (torch.tensor(each, device=model.device).view(1, 3, 1, 1) for each in (_MEAN, _STD))
    pixels = ((_pixels(seen, model.device) - mean) / std).to(estimator.dtype)
    near: torch.Tensor = estimator(pixel_values=pixels).predicted_depth.float()
    near = functional.interpolate(
        near[:, None], size=(image.height, image.width), mode="bicubic", align_corners=False
    )[0, 0]
    low, high = near.min(), near.max()
    if not torch.isfinite(high - low):
        raise NumericalFault(f"{options.estimator} produced NaN or infinite depths")
    return ((near - low) / (high - low).clamp(min=torch.finfo(near.dtype).tiny) * 255).to(
        torch.uint8
    )


PREPROCESSORS: Mapping[str, Preprocessor] = {"canny": find_edges, "depth": estimate_depth}


def _pixels(image: RawImage, device: torch.device) -> torch.Tensor:
    """Return (1, 3, height, width) of 0 to 1."""
    return to_levels(image).to(device).permute(2, 0, 1)[None].float() / 255
