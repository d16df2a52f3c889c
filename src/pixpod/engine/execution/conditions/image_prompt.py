"""Images that are shown to the model as a part of its prompt."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from pixpod.engine.adapters.image_copies import ImageCopies
from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache, cache_key, digest_key
from pixpod.engine.execution.conditions.base import Condition, to_levels
from pixpod.engine.execution.pipelines import Arguments, calls_of
from pixpod.engine.model import Component, LoadedModel, Pipeline
from pixpod.families import ImagePromptSpec
from pixpod.job import GenerationRequest, ImagePromptOptions, RawImage
from pixpod.methods import StageName, is_guided

_TOKENS, _SCALE, _NEGATIVE = "image_tokens", "image_scale", "negative_image_tokens"

_NO_IMAGE = "none"
"""In the place of a digest: the input of zeros that stands for no image."""


class ImagePromptCondition(Condition):
    """Tokens of a request's images, and a copy of the denoiser that attends to them.

    Neither the copy nor the batch depends on the images or the scale.
    """

    stage = StageName.IMAGE_ENCODE

    def __init__(self, cache: ConditionCache, copies: ImageCopies) -> None:
        self._cache = cache
        self._copies = copies

    def check(self, model: LoadedModel, request: GenerationRequest) -> list[str]:
        if request.image_prompt is not None:
            calls_of(model.spec.family).check_image_prompt(model, request.image_prompt)
        return []

    def components(
        self, model: LoadedModel, stage: StageName, requests: Sequence[GenerationRequest]
    ) -> Mapping[str, Component]:
        prompt = requests[0].image_prompt
        if prompt is None or stage is not StageName.DENOISE or _spec(model).extends_text:
            return {}
        copy = self._copies.get(model, prompt.adapter)
        return {model.spec.family.denoiser: copy.module}

    def warnings(self, component: Component) -> tuple[str, ...]:
        return self._copies.warnings(component)

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        prompt = request.image_prompt
        if prompt is None:
            return {}
        keys = [_tokens_key(model, prompt, digest) for digest, _ in _inputs(model, request)]
        entries = [self._cache.get(key, model.device) for key in keys]
        found = [entry[_TOKENS] for entry in entries if entry is not None]
        return _arguments(request, prompt, found) if len(found) == len(entries) else None

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        prompt = request.image_prompt
        assert prompt is not None, "a request without images is found"
        found = [
            self._tokens(model, prompt, digest, image) for digest, image in _inputs(model, request)
        ]
        return _arguments(request, prompt, found)

    def arrange(self, batch: Batch, pipe: Pipeline, arguments: Arguments) -> Arguments:
        if batch.request.image_prompt is None:
            return arguments
        tokens, scales = arguments.pop(_TOKENS), arguments.pop(_SCALE)
        negative = arguments.pop(_NEGATIVE, None)
        return batch.calls.with_images(pipe, arguments, tokens, negative, scales)

    def _tokens(
        self, model: LoadedModel, prompt: ImagePromptOptions, digest: str, image: RawImage | None
    ) -> torch.Tensor:
        key = _tokens_key(model, prompt, digest)
        entry = self._cache.get(key, model.device)
        if entry is None:
            seen = self._seen(model, prompt, digest, image)
            entry = {_TOKENS: calls_of(model.spec.family).image_tokens(model, prompt, seen)}
            self._cache.put(key, entry)
        tokens: torch.Tensor = entry[_TOKENS]
        return tokens

    def _seen(
        self, model: LoadedModel, prompt: ImagePromptOptions, digest: str, image: RawImage | None
    ) -> torch.Tensor:
        """Return what the image encoder sees, which adapters of several models may share."""
        encoder = model.key_of(prompt.encoder or prompt.adapter)
        key = digest_key("seen", str(encoder), digest)
        entry = self._cache.get(key, model.device)
        if entry is None:
            pixels = _pixels(image, _spec(model), prompt.size_px, model.device)
            entry = {"seen": calls_of(model.spec.family).see_image(model, prompt, pixels)}
            self._cache.put(key, entry)
        seen: torch.Tensor = entry["seen"]
        return seen


def _spec(model: LoadedModel) -> ImagePromptSpec:
    spec = model.spec.family.image_prompt
    assert spec is not None, "the contract refuses image prompts of other families"
    return spec


def _inputs(
    model: LoadedModel, request: GenerationRequest
) -> Iterator[tuple[str, RawImage | None]]:
    """Yield the digests and images of a request, then what stands for none if guidance needs it."""
    for image in request.conditions.prompt_images:
        yield image.digest, image.raw
    if not _spec(model).extends_text and is_guided(request.sampling.guidance_scale):
        yield _NO_IMAGE, None


def _tokens_key(model: LoadedModel, prompt: ImagePromptOptions, digest: str) -> bytes:
    adapter = str(model.key_of(prompt.adapter))
    return cache_key("image prompt", model, adapter, prompt.encoder, digest)


def _pixels(
    image: RawImage | None, spec: ImagePromptSpec, side: int, device: torch.device
) -> torch.Tensor:
    """Return (1, 3, side, side), normalised."""
    if image is None:
        return torch.zeros((1, 3, side, side), device=device)
    mean, std = (
        torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (spec.mean, spec.std)
    )
    levels = to_levels(image).to(device).permute(2, 0, 1)[None]
    return (levels.float() / 255 - mean) / std


def _arguments(
    request: GenerationRequest, prompt: ImagePromptOptions, found: Sequence[torch.Tensor]
) -> Arguments:
    """Return the tokens of all images in a row, and the scale, as (1, tokens, channels)."""
    num_images = len(request.conditions.prompt_images)
    tokens = torch.cat(list(found[:num_images]), dim=1)
    arguments = {_TOKENS: tokens, _SCALE: tokens.new_full((1, 1, 1), prompt.scale)}
    for none in found[num_images:]:
        arguments[_NEGATIVE] = none.repeat(1, num_images, 1)
    return arguments
