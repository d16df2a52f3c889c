"""What is drawn to warm a model up: the first image of each size costs more than the next.

POLICY, values only.
"""

from collections.abc import Iterator, Sequence

from pixpod.catalog import ModelSpec, Size
from pixpod.job import GenerationRequest

STEPS = 2
"""One step may take a scheduler's special first path only."""


def warmup_requests(spec: ModelSpec, sizes: Sequence[Size]) -> Iterator[GenerationRequest]:
    """One small request for each of the sizes that the model serves."""
    defaults = spec.defaults
    for width, height in sizes:
        if not _is_served(spec, width, height):
            continue
        yield GenerationRequest(
            model=spec.name,
            prompt="a photo of a lighthouse",
            prompt_2=None,
            negative_prompt=None,
            width=width,
            height=height,
            num_inference_steps=min(STEPS, spec.limits.max_steps),
            guidance_scale=defaults.guidance_scale,
            true_cfg_scale=None,
            max_sequence_length=defaults.max_sequence_length,
            scheduler=defaults.scheduler,
            seeds=(0,),
            truncate_long_prompt=True,
            deterministic=False,
        )


def _is_served(spec: ModelSpec, width: int, height: int) -> bool:
    limits, multiple = spec.limits, spec.family.size_multiple_px
    return width * height <= limits.max_pixels and all(
        limits.min_side_px <= side <= limits.max_side_px and side % multiple == 0
        for side in (width, height)
    )
