"""Requests for benchmarks: a model's defaults, with what a scenario says in their place."""

from dataclasses import replace

from pixpod.catalog import ModelSpec
from pixpod.job import GenerationRequest, Quality

PROMPT = "a red circle on a blue background"


def make_request(
    spec: ModelSpec,
    *,
    size_px: int,
    num_inference_steps: int,
    seeds: tuple[int, ...] = (0,),
    text_tokens: int | None = None,
    has_guidance: bool = True,
) -> GenerationRequest:
    """Square images. A guidance scale of 0 is that of distilled weights: half the work."""
    request = GenerationRequest(
        model=spec.name,
        prompt=PROMPT,
        prompt_2=None,
        negative_prompt=None,
        width=size_px,
        height=size_px,
        num_inference_steps=num_inference_steps,
        guidance_scale=spec.defaults.guidance_scale,
        true_cfg_scale=None,
        max_sequence_length=text_tokens or spec.defaults.max_sequence_length,
        scheduler=spec.defaults.scheduler,
        seeds=seeds,
        truncate_long_prompt=False,
        deterministic=False,
        quality=Quality.DEFAULT,
    )
    is_plain = has_guidance or not spec.takes_guidance
    return request if is_plain else replace(request, guidance_scale=0.0)
