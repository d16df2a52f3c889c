"""Encodes the images of a job."""

import asyncio

from pixpod.job import EncodedImage, Generation, Job
from pixpod.outputs.encoding import MetadataOptions, encode, generation_text


async def encode_images(
    job: Job, generation: Generation, metadata: MetadataOptions
) -> list[EncodedImage]:
    """Encode each image on a thread of its own: encoders release the interpreter's lock."""
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

    indices = range(len(request.seeds))
    return await asyncio.gather(*(asyncio.to_thread(encode_one, index) for index in indices))
