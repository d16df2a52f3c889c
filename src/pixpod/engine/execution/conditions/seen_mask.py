"""A mask that the denoiser itself sees, beside the image without what it marks."""

import hashlib
from typing import cast

import torch

from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import Condition, to_levels, to_tensor
from pixpod.engine.execution.pipelines import Arguments, MaskCalls, calls_of
from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.job import GenerationRequest, RawMask
from pixpod.methods import StageName


class SeenMaskCondition(Condition):
    """The mask of a request to a family whose denoiser sees it.

    Everything that is not black counts as marked; grey blends in the end as for other families.
    """

    stage = StageName.IMAGE_ENCODE

    def __init__(self, cache: ConditionCache) -> None:
        self._cache = cache

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        if not model.spec.family.sees_mask:
            return {}
        return self._cache.get(_key(model, request), model.device)

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        image, mask = request.conditions.image, request.conditions.mask
        assert image is not None and mask is not None, "the contract requires both"
        marked = _marked(mask, model.device)
        # black pixels are 0 of -1 to 1 there, which is grey, as diffusers has it
        pixels = to_tensor(image.raw, model.device) * ~marked
        masked = calls_of(model.spec.family).encode_image(pipe, pixels)
        arguments = {"masked_image": masked, "mask_image": marked}
        self._cache.put(_key(model, request), arguments)
        return arguments

    def arrange(self, batch: Batch, pipe: Pipeline, arguments: Arguments) -> Arguments:
        if not batch.model.spec.family.sees_mask:
            return arguments
        dtype = arguments["prompt_embeds"].dtype
        image, masked = (arguments.pop(name).to(dtype) for name in ("image", "masked_image"))
        calls = cast(MaskCalls, batch.calls)  # such families have it
        mask = arguments.pop("mask_image")
        return {**arguments, **calls.mask_arguments(pipe, image, masked, mask)}


def _key(model: LoadedModel, request: GenerationRequest) -> bytes:
    image, mask = request.conditions.image, request.conditions.mask
    assert image is not None and mask is not None, "the contract requires both"
    return cache_key("mask", model, image.digest, hashlib.sha256(mask.pixels).hexdigest())


def _marked(mask: RawMask, device: torch.device) -> torch.Tensor:
    """Return (1, 1, height, width), true where a pixel is to be generated."""
    return (to_levels(mask).permute(2, 0, 1)[None] > 0).to(device)
