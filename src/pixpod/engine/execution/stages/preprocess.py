"""Makes control images of given ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from pixpod.engine.execution.batch import Batch, ItemState
from pixpod.engine.execution.condition_cache import ConditionCache, digest_key
from pixpod.engine.execution.preprocessors import PREPROCESSORS
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.model import LoadedModel
from pixpod.job import ControlOptions, GenerationRequest, InputImage, RawImage

_EMPTY = "controlnets[{}]: nothing was found in the image: its control image is black"


class PreprocessStage:
    """Replaces the images of an item's controls, which have no preprocessors afterwards.

    Later stages see a request as if its caller had sent the control images.
    """

    def __init__(self, cache: ConditionCache) -> None:
        self._cache = cache

    def prepare(self, batch: Batch) -> bool:
        for state in batch.items:
            found = [self._find(batch.model, *each) for each in _controls(state)]
            images = [image for image in found if image is not None]
            if len(images) == len(found):
                _use(state, images)
        return bool(_pending(batch))

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(states: Sequence[ItemState]) -> None:
            for state in states:
                _use(state, [self._make(batch.model, *each) for each in _controls(state)])

        pending = [[state] for state in _pending(batch)]
        context.run_within_memory(batch, "making a control image", pending, attempt)

    def _find(
        self, model: LoadedModel, control: ControlOptions, image: InputImage, seen: RawImage | None
    ) -> InputImage | None:
        """Return the control image if it is given or was made before."""
        if control.preprocessor is None:
            return image
        key = _key(model, control, image)
        entry = self._cache.get(key, torch.device("cpu"))
        return None if entry is None else _as_image(entry["levels"], key)

    def _make(
        self, model: LoadedModel, control: ControlOptions, image: InputImage, seen: RawImage | None
    ) -> InputImage:
        found = self._find(model, control, image, seen)
        if found is not None:
            return found
        options = control.preprocessor
        assert options is not None, "an image without a preprocessor is found"
        levels = PREPROCESSORS[options.type](model, options, image.raw, seen).cpu()
        key = _key(model, control, image)
        self._cache.put(key, {"levels": levels})
        return _as_image(levels, key)


def _pending(batch: Batch) -> list[ItemState]:
    return [
        state
        for state in batch.items
        if state.error is None and any(each.preprocessor for each in state.item.request.controls)
    ]


def _controls(
    state: ItemState,
) -> list[tuple[ControlOptions, InputImage, RawImage | None]]:
    """Return each control with its image, and with what an estimator sees of it."""
    request = state.item.request
    images, seen = request.conditions.controls, request.conditions.estimator_images
    return list(zip(request.controls, images, seen or [None] * len(images), strict=True))


def _use(state: ItemState, images: Sequence[InputImage]) -> None:
    request = state.item.request
    for index, (control, image) in enumerate(zip(request.controls, images, strict=True)):
        if control.preprocessor and not image.raw.pixels.strip(b"\0"):
            state.warnings.append(_EMPTY.format(index))
    state.item = replace(state.item, request=_with_controls(request, images))


def _with_controls(request: GenerationRequest, images: Sequence[InputImage]) -> GenerationRequest:
    conditions = replace(request.conditions, controls=tuple(images), estimator_images=())
    controls = tuple(replace(each, preprocessor=None) for each in request.controls)
    return replace(request, controls=controls, conditions=conditions)


def _key(model: LoadedModel, control: ControlOptions, image: InputImage) -> bytes:
    options = control.preprocessor
    assert options is not None
    estimator = str(model.key_of(options.estimator)) if options.estimator else None
    return digest_key("control image", options.type, estimator, image.digest)


def _as_image(levels: torch.Tensor, key: bytes) -> InputImage:
    """Return grey levels of (height, width) as an image, whose digest is that of the key."""
    height, width = levels.shape
    pixels = levels[..., None].expand(height, width, 3).contiguous().numpy().tobytes()
    raw = RawImage(width=width, height=height, pixels=pixels)
    return InputImage(raw=raw, digest=hashlib.sha256(key).hexdigest())
