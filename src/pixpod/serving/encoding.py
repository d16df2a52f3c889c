"""Makes files of the images of a job, and treats unsafe ones as the job says."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pixpod.job import (
    DroppedImage,
    EncodedImage,
    EncodedResult,
    Generation,
    Job,
    SafetyAction,
)
from pixpod.outputs.blurring import blur
from pixpod.outputs.encoding import MetadataOptions, encode, generation_text
from pixpod.serving.safety import Safety
from pixpod.timeline import Timeline

T = TypeVar("T")


async def encode_images(
    job: Job,
    generation: Generation,
    metadata: MetadataOptions,
    safety: Safety,
    timeline: Timeline,
) -> EncodedResult:
    """Encode the images of a job, and classify them meanwhile if the job says so.

    Raises what `Safety.verdicts` raises: without a verdict no image is delivered.
    """
    assert len(generation.images) == len(job.request.seeds), "an engine makes one image per seed"
    encoder = _Encoder(job=job, generation=generation, metadata=metadata)
    encoding = _timed(timeline, "encode", encoder.encode(range(len(generation.images))))
    result = EncodedResult(
        images=(),
        model=generation.model,
        steps=generation.num_calls,
        warnings=generation.warnings,
        adapters=generation.adapters,
    )
    if job.output.safety is None:
        return replace(result, images=await encoding)
    pixels = [each.pixels for each in generation.images]
    classifying = _timed(timeline, "safety", safety.verdicts(pixels))
    images, verdicts = await asyncio.gather(encoding, classifying)
    result = replace(
        result,
        images=tuple(
            replace(image, verdict=verdict) for image, verdict in zip(images, verdicts, strict=True)
        ),
    )
    unsafe = [index for index, verdict in enumerate(verdicts) if verdict.nsfw]
    if not unsafe:
        return result
    with timeline.phase("encode"):
        return await _TREATMENTS[job.output.safety](result, unsafe, encoder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoder:
    """Encodes images of a job, each on a thread: encoders release the interpreter's lock."""

    job: Job
    generation: Generation
    metadata: MetadataOptions

    async def encode(
        self, indices: Sequence[int], *, is_blurred: bool = False
    ) -> tuple[EncodedImage, ...]:
        def encode_one(index: int) -> EncodedImage:
            output, image = self.job.output, self.generation.images[index]
            text = generation_text(
                self.job.request,
                image.seed,
                self.generation.model,
                has_prompts=self.metadata.has_prompts,
            )
            return encode(
                blur(image.pixels) if is_blurred else image.pixels,
                index=index,
                seed=image.seed,
                format=output.format,
                quality=output.quality,
                text=text if output.metadata else None,
                has_ai_mark=self.metadata.has_ai_mark,
            )

        tasks = (asyncio.to_thread(encode_one, index) for index in indices)
        return tuple(await asyncio.gather(*tasks))


async def _flag(result: EncodedResult, unsafe: Sequence[int], encoder: _Encoder) -> EncodedResult:
    return result


async def _blur(result: EncodedResult, unsafe: Sequence[int], encoder: _Encoder) -> EncodedResult:
    images = list(result.images)
    for blurred in await encoder.encode(unsafe, is_blurred=True):
        images[blurred.index] = replace(blurred, verdict=images[blurred.index].verdict)
    warning = f"safety: {_listed(unsafe)}: unsafe for work, so blurred"
    return replace(result, images=tuple(images), warnings=(*result.warnings, warning))


async def _drop(result: EncodedResult, unsafe: Sequence[int], encoder: _Encoder) -> EncodedResult:
    dropped = (
        DroppedImage(
            index=image.index,
            seed=image.seed,
            width=image.width,
            height=image.height,
            verdict=image.verdict,
        )
        for image in result.images
        if image.verdict and image.verdict.nsfw
    )
    warning = f"safety: {_listed(unsafe)}: unsafe for work, so not delivered"
    return replace(
        result,
        images=tuple(image for image in result.images if image.index not in unsafe),
        dropped=tuple(dropped),
        warnings=(*result.warnings, warning),
    )


_TREATMENTS: Mapping[
    SafetyAction, Callable[[EncodedResult, Sequence[int], _Encoder], Awaitable[EncodedResult]]
] = {SafetyAction.FLAG: _flag, SafetyAction.BLUR: _blur, SafetyAction.DROP: _drop}


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(f"images[{index}]" for index in indices)


async def _timed(timeline: Timeline, phase: str, work: Coroutine[Any, Any, T]) -> T:
    """Await something as a phase. Any: what a coroutine takes and yields."""
    with timeline.phase(phase):
        return await work
