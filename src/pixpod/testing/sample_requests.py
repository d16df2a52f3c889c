"""Builds the requests of tests and benchmarks: a model's defaults with changes."""

from pixpod.catalog import ModelSpec
from pixpod.job import GenerationRequest

PROMPT = "a red circle on a blue background"


def make_request(
    spec: ModelSpec,
    *,
    size_px: int,
    num_inference_steps: int,
    prompt: str = PROMPT,
    seeds: tuple[int, ...] = (0,),
    text_tokens: int | None = None,
    has_guidance: bool = True,
) -> GenerationRequest:
    """Return a request for square images, one per seed.

    Without `has_guidance` the guidance scale is 0, which is how distilled UNets are called and
    halves the work; families that take their guidance as an input are unaffected.
    """
    changes: dict[str, float | int] = {}
    if text_tokens:
        changes["max_sequence_length"] = text_tokens
    if spec.takes_guidance and not has_guidance:
        changes["guidance_scale"] = 0.0
    return spec.default_request(
        width=size_px,
        height=size_px,
        num_inference_steps=num_inference_steps,
        prompt=prompt,
        seeds=seeds,
        **changes,
    )


def pipeline_arguments(request: GenerationRequest) -> dict[str, object]:
    """Return the request as arguments of a diffusers pipeline, without generators.

    A field that is None is left out, so that the pipeline's own default holds.
    """
    arguments: dict[str, object] = {
        "prompt": request.prompts.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.sampling.num_inference_steps,
        "num_images_per_prompt": len(request.seeds),
        "guidance_scale": request.sampling.guidance_scale,
        "max_sequence_length": request.text.max_sequence_length,
    }
    return {name: value for name, value in arguments.items() if value is not None}
