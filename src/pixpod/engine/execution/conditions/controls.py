"""Control images, which ControlNets see: edges, depth and others."""

from collections.abc import Iterator

from pixpod.engine.execution.batch import Batch
from pixpod.engine.execution.condition_cache import ConditionCache, cache_key
from pixpod.engine.execution.conditions.base import Condition, to_tensor
from pixpod.engine.execution.pipelines import Arguments, calls_of
from pixpod.engine.model import LoadedModel, Pipeline
from pixpod.families import ControlNetSpec
from pixpod.job import GenerationRequest, RawImage
from pixpod.methods import StageName


class ControlNetCondition(Condition):
    """A request's control images as its family's nets see them: pixels, or latents."""

    stage = StageName.IMAGE_ENCODE

    def __init__(self, cache: ConditionCache) -> None:
        self._cache = cache

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        found: Arguments = {}
        for name, key, image in _images(model, request):
            if _spec(model).sees_latents:
                entry = self._cache.get(key, model.device)
                if entry is None:
                    return None
                found[name] = entry["control"]
            else:
                found[name] = (to_tensor(image, model.device) + 1) / 2
        return found

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        calls = calls_of(model.spec.family)
        found: Arguments = {}
        for name, key, image in _images(model, request):
            entry = self._cache.get(key, model.device)
            if entry is None:
                entry = {"control": calls.encode_image(pipe, to_tensor(image, model.device))}
                self._cache.put(key, entry)
            found[name] = entry["control"]
        return found

    def arrange(self, batch: Batch, pipe: Pipeline, arguments: Arguments) -> Arguments:
        """Return the arguments with a list of images, one for each net, and the nets' scales."""
        controls = batch.request.controls
        if not controls:
            return arguments
        images = [arguments.pop(_name(index)) for index in range(len(controls))]
        return {
            **arguments,
            **batch.calls.control_arguments(pipe, batch.request, images),
            "controlnet_conditioning_scale": [each.scale for each in controls],
            "control_guidance_start": [each.start for each in controls],
            "control_guidance_end": [each.end for each in controls],
        }


def _images(
    model: LoadedModel, request: GenerationRequest
) -> Iterator[tuple[str, bytes, RawImage]]:
    """Yield for each control the name of its argument, the key of its latents, and its image."""
    for index, image in enumerate(request.conditions.controls):
        yield _name(index), cache_key("control", model, image.digest), image.raw


def _name(index: int) -> str:
    return f"control_{index}"


def _spec(model: LoadedModel) -> ControlNetSpec:
    spec = model.spec.family.controlnet
    assert spec is not None, "the contract refuses controls of other families"
    return spec
