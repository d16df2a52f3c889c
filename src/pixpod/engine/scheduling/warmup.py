"""Requests that warm a model up: the first image of each size takes longer than the next.

Values only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pixpod.catalog import ModelSpec, Size
from pixpod.job import GenerationRequest

STEPS = 2
"""Steps of a warm-up: a single one may take only a scheduler's special first path."""


def warmup_requests(
    spec: ModelSpec, sizes: Sequence[Size], max_batch_size: Callable[[GenerationRequest], int]
) -> Iterator[GenerationRequest]:
    """Yield short requests for each of the sizes that the model serves.

    A single image and the largest batch, because code that is compiled or tuned for one row is
    not for several.
    """
    for width, height in sizes:
        if not spec.is_size_served(width, height):
            continue
        single = spec.default_request(
            width=width,
            height=height,
            num_inference_steps=min(STEPS, spec.limits.max_steps),
            truncate=True,
        )
        yield single
        if (batch_size := max_batch_size(single)) > 1:
            yield replace(single, seeds=tuple(range(batch_size)))
