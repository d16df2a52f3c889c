"""A given image as the start of denoising, and a mask that keeps parts of it.

Inpainting is the same for all families whose denoiser does not see the mask, with any scheduler:
after each step, what the mask keeps is replaced by the given image with the noise of that step. In
the end the pixels of the given image themselves are put back, because no autoencoder returns them.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import AfterStep, Condition, to_levels, to_tensor
from pixpod.engine.execution.pipelines import Arguments, calls_of
from pixpod.engine.model import LoadedModel, Pipeline, Scheduler
from pixpod.job import GenerationRequest, InputImage, RawMask
from pixpod.methods import StageName


class SourceCondition(Condition):
    """The latents of a request's image, and the mask."""

    stage = StageName.IMAGE_ENCODE

    def __init__(self, cache: ConditionCache) -> None:
        self._cache = cache

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        found = [self._find(model, image) for image in _images(request)]
        known = [each for each in found if each is not None]
        return _arguments(known) if len(known) == len(found) else None

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        return _arguments([self._encode(model, pipe, image) for image in _images(request)])

    def _find(self, model: LoadedModel, image: InputImage) -> Arguments | None:
        return self._cache.get(cache_key("image", model, image.digest), model.device)

    def _encode(self, model: LoadedModel, pipe: Pipeline, image: InputImage) -> Arguments:
        if (found := self._find(model, image)) is not None:
            return found
        pixels = to_tensor(image.raw, model.device)
        arguments = {"image": calls_of(model.spec.family).encode_image(pipe, pixels)}
        self._cache.put(cache_key("image", model, image.digest), arguments)
        return arguments

    def after_step(
        self, batch: Batch, pipe: Pipeline, rows: Sequence[Row], num_calls: int
    ) -> AfterStep | None:
        masks = [row.state.item.request.conditions.mask for row in rows]
        if not any(masks) or batch.model.spec.family.sees_mask:
            return None
        arguments = [row.state.arguments[self.used_by] for row in rows]
        like = arguments[0]["prompt_embeds"][0]
        given = torch.cat([each["image"] for each in arguments]).to(like)
        noise = torch.cat([_noise(row, given) for row in rows])
        size = (given.shape[-2], given.shape[-1])
        shares = torch.cat([_latent_mask(mask, size) for mask in masks]).to(given)
        given, noise, shares = (
            batch.calls.pack(pipe, each) for each in (given, noise, shares.expand_as(given))
        )
        scheduler = pipe.scheduler

        def restore(step: int, latents: torch.Tensor) -> torch.Tensor:
            timesteps = scheduler.timesteps[-num_calls:]
            kept = given
            if step + 1 < num_calls:
                kept = _add_noise(scheduler, given, noise, timesteps[step + 1])
            return (shares * latents + (1 - shares) * kept).to(latents.dtype)

        return restore

    def finish(self, request: GenerationRequest, image: torch.Tensor) -> torch.Tensor:
        given, mask = request.conditions.image, request.conditions.mask
        if given is None or mask is None:
            return image
        shares = to_levels(mask).to(image.device, torch.int32)
        pixels = to_levels(given.raw).to(image.device, torch.int32)
        blended = (shares * image.to(torch.int32) + (255 - shares) * pixels + 127) // 255
        return blended.to(torch.uint8)


def _images(request: GenerationRequest) -> tuple[InputImage, ...]:
    """Return the given image, and those that are edited with it; none without an image."""
    image = request.conditions.image
    return (image, *request.conditions.references) if image else ()


def _arguments(encoded: Sequence[Arguments]) -> Arguments:
    """Return the latents of the first image, and those of all others as (1, images, ...)."""
    if not encoded:
        return {}
    first, *others = (each["image"] for each in encoded)
    return {"image": first} | ({"references": torch.stack(others, dim=1)} if others else {})


def _latent_mask(mask: RawMask | None, size: tuple[int, int]) -> torch.Tensor:
    """Return (1, 1, height, width) of 0 to 1, the largest value below each latent.

    So latents are generated wherever one of their pixels is.
    """
    if mask is None:
        return torch.ones(1, 1, *size)
    levels = to_levels(mask).permute(2, 0, 1)[None].float() / 255
    return functional.adaptive_max_pool2d(levels, size)


def _noise(row: Row, given: torch.Tensor) -> torch.Tensor:
    """Return the noise that the pipeline has added to a row's image: the first of its generator."""
    generator = torch.Generator("cpu").manual_seed(row.seed)
    noise = torch.randn((1, *given.shape[1:]), generator=generator, dtype=given.dtype)
    return noise.to(given.device)


def _add_noise(
    scheduler: Scheduler, given: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return latents as they are at a timestep, which is that of the scheduler's next step."""
    timesteps = timestep.expand(len(given))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        noised: torch.Tensor = scheduler.scale_noise(given, timesteps, noise)
    else:
        noised = scheduler.add_noise(given, noise, timesteps)
    return noised
