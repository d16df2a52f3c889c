"""The pipeline of a request and the denoiser calls that it really takes."""

from dataclasses import dataclass

from pixpod.catalog import ModelSpec, Size
from pixpod.job import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The pipeline and denoiser calls that generate the images of one request.

    `pipeline` is the name of a diffusers class. `num_calls` counts the denoiser calls of one image.
    """

    pipeline: str
    size: Size
    num_calls: int


def method_of(spec: ModelSpec, request: GenerationRequest) -> Method:
    """Return the pipeline and the denoiser calls of a request to this model.

    Raises KeyError for a mode or a scheduler that the model's family does not have.
    """
    scheduler = spec.family.schedulers[request.sampling.scheduler]
    return Method(
        pipeline=spec.family.pipelines[request.mode],
        size=(request.width, request.height),
        num_calls=scheduler.num_calls(request.sampling.num_inference_steps),
    )
