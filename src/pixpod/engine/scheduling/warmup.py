"""Requests that warm a model up: the first image of each size takes longer than the next.

Values only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pixpod.catalog import ModelSpec, Size
from pixpod.extras import Extras
from pixpod.job import GenerationRequest, LongPrompt
from pixpod.stacks import Stack, stack_request, with_slots

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
        single = spec.default_request(**_changes(spec, (width, height)))
        yield single
        if (batch_size := max_batch_size(single)) > 1:
            yield replace(single, seeds=tuple(range(batch_size)))


def stack_warmups(
    stack: Stack, spec: ModelSpec, extras: Extras, sizes: Sequence[Size]
) -> Iterator[GenerationRequest]:
    """Yield one short request with everything in a stack, of the first size that is served.

    Its slots for LoRAs are the usual ones of their rank.
    """
    served = (size for size in sizes if spec.is_size_served(*size))
    if (size := next(served, None)) is None:
        return
    request = stack_request(stack, spec, extras, **_changes(spec, size))
    slots = request.conditions.slots
    yield with_slots(request, replace(slots, is_whole=False)) if slots else request


def _changes(spec: ModelSpec, size: Size) -> dict[str, Any]:
    """Return what makes a request short. Any: types differ."""
    width, height = size
    counts = spec.step_counts or range(1, spec.limits.max_steps + 1)
    steps = min((count for count in counts if count >= STEPS), default=max(counts))
    return {
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "on_long_prompt": LongPrompt.TRUNCATE,
    }
