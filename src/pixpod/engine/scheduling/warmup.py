"""What is drawn to warm a model up: the first image of each size costs more than the next.

POLICY, values only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pixpod.catalog import ModelSpec, Size
from pixpod.engine.scheduling.batching import GroupKey, RowLimit
from pixpod.job import GenerationRequest, Quality

STEPS = 2
"""One step may take a scheduler's special first path only."""


def warmup_requests(
    spec: ModelSpec, sizes: Sequence[Size], row_limit: RowLimit
) -> Iterator[GenerationRequest]:
    """Short requests for each of the sizes that the model serves: a single image, and the largest
    batch, because what is compiled or tuned for one row is not for several.
    """
    for width, height in sizes:
        if not _is_served(spec, width, height):
            continue
        single = _request(spec, width, height)
        yield single
        if (num_rows := row_limit(GroupKey.of(single))) > 1:
            yield replace(single, seeds=tuple(range(num_rows)))


def _request(spec: ModelSpec, width: int, height: int) -> GenerationRequest:
    defaults = spec.defaults
    return GenerationRequest(
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
        quality=Quality.DEFAULT,
    )


def _is_served(spec: ModelSpec, width: int, height: int) -> bool:
    limits, multiple = spec.limits, spec.family.size_multiple_px
    return width * height <= limits.max_pixels and all(
        limits.min_side_px <= side <= limits.max_side_px and side % multiple == 0
        for side in (width, height)
    )
