"""The pipeline of a request and the denoiser calls that it really takes."""

from dataclasses import dataclass

from pixpod.catalog import ModelSpec, Size
from pixpod.families import Control
from pixpod.job import GenerationRequest, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The pipeline and denoiser calls that generate the images of one request.

    `pipeline` is the name of a diffusers class. `calls` are the denoiser calls of one image, for
    each of the stages that denoise.
    """

    mode: Mode
    pipeline: str
    size: Size
    calls: tuple[int, ...]

    @property
    def num_calls(self) -> int:
        return sum(self.calls)


def method_of(spec: ModelSpec, request: GenerationRequest) -> Method:
    """Return how a request to this model runs.

    The request is one that the model serves: a mode or a scheduler that its family lacks is a
    KeyError.
    """
    scheduler = spec.family.schedulers[request.sampling.scheduler]
    return Method(
        mode=request.mode,
        pipeline=spec.family.pipelines[request.mode, Control.NONE],
        size=(request.width, request.height),
        calls=(scheduler.num_calls(request.sampling.num_inference_steps),),
    )
