"""Encodes the files of a job: its images, and control images that were made.

Unsafe images are treated as the job says.
"""

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
    encoding = _timed(timeline, "encode", encoder.encode_all())
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
    files, verdicts = await asyncio.gather(encoding, classifying)
    images, controls = files[: job.num_images], files[job.num_images :]
    classified = (
        replace(image, verdict=verdict) for image, verdict in zip(images, verdicts, strict=True)
    )
    result = replace(result, images=(*classified, *controls))
    unsafe = [index for index, verdict in enumerate(verdicts) if verdict.nsfw]
    if not unsafe:
        return result
    with timeline.phase("encode"):
        return await _TREATMENTS[job.output.safety](result, unsafe, encoder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoder:
    """Encodes files of a job, each on a thread: encoders release the interpreter's lock."""

    job: Job
    generation: Generation
    metadata: MetadataOptions

    async def encode_all(self) -> tuple[EncodedImage, ...]:
        """Encode the images and then the control images that the job asks for."""
        images, controls = await asyncio.gather(
            self.encode(range(self.job.num_images)), self._encode_controls()
        )
        return (*images, *controls)

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

    async def _encode_controls(self) -> tuple[EncodedImage, ...]:
        """Encode without generation data and marks: no model has generated what they show."""
        job, output = self.job, self.job.output

        def encode_one(place: int) -> EncodedImage:
            return encode(
                self.generation.controls[job.made_controls[place]],
                index=job.num_images + place,
                seed=None,
                format=output.format,
                quality=output.quality,
                text=None,
                has_ai_mark=False,
            )

        tasks = (asyncio.to_thread(encode_one, place) for place in range(len(job.made_controls)))
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
            seed=encoder.job.request.seeds[image.index],
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
