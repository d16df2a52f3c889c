"""Encodes the files of a job: its images, and control images that were made."""

import asyncio

from pixpod.job import EncodedImage, Generation, Job
from pixpod.outputs.encoding import MetadataOptions, encode, generation_text


async def encode_images(
    job: Job, generation: Generation, metadata: MetadataOptions
) -> list[EncodedImage]:
    """Encode each file on a thread of its own: encoders release the interpreter's lock.

    Control images have neither generation data nor a mark: no model has generated what they show.
    """
    request, output = job.request, job.output
    assert len(generation.images) == len(request.seeds), "an engine makes one image per seed"

    def encode_one(index: int) -> EncodedImage:
        image = generation.images[index]
        text = generation_text(
            request, image.seed, generation.model, has_prompts=metadata.has_prompts
        )
        return encode(
            image.pixels,
            index=index,
            seed=image.seed,
            format=output.format,
            quality=output.quality,
            text=text if output.metadata else None,
            has_ai_mark=metadata.has_ai_mark,
        )

    def encode_control(place: int) -> EncodedImage:
        return encode(
            generation.controls[job.made_controls[place]],
            index=job.num_images + place,
            seed=None,
            format=output.format,
            quality=output.quality,
            text=None,
            has_ai_mark=False,
        )

    return await asyncio.gather(
        *(asyncio.to_thread(encode_one, index) for index in range(job.num_images)),
        *(asyncio.to_thread(encode_control, place) for place in range(len(job.made_controls))),
    )
