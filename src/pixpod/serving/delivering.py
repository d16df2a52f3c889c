"""Brings the encoded images of a job to where the caller finds them."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import SecretStr

from pixpod.errors import ResultTooLarge, WorkerError
from pixpod.job import Delivery, EncodedImage, Job, JobResult, StoredImage
from pixpod.outputs.keys import JobKeys
from pixpod.outputs.storage import ImageStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """The stores of a deployment. `key_prefix` is the deployment's; `key_secret` hides keys."""

    stores: Mapping[Delivery, ImageStore]
    key_prefix: str
    key_secret: SecretStr

    async def put_all(
        self, job: Job, images: Sequence[EncodedImage], delivery: Delivery
    ) -> tuple[StoredImage, ...]:
        """Store all images at once; waits for all even if one fails."""
        puts = (self._put(job, image, delivery) for image in images)
        results = await asyncio.gather(*puts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return tuple(result for result in results if not isinstance(result, BaseException))

    async def with_links(self, job: Job, result: JobResult) -> JobResult:
        """Return a result whose images the platform refused to take inline, with links instead.

        Raises ResultTooLarge if the deployment's bucket cannot take the images.
        """
        # images inline have been encoded for this very job
        images = [each.image for each in result.images if isinstance(each.image, EncodedImage)]
        cause: WorkerError | None = None
        if Delivery.S3 in self.stores:
            try:
                stored = await self.put_all(job, images, Delivery.S3)
            except WorkerError as error:
                log.error("images not stored in place of inline ones", exc_info=error)
                cause = error
            else:
                warning = "the platform refused the images inline: they are in the bucket"
                return replace(result, images=stored, warnings=(*result.warnings, warning))
        num_bytes = sum(len(image.data) for image in images)
        raise ResultTooLarge(
            f"the platform refused a reply with {len(images)} inline images of together "
            f"{num_bytes} bytes: request fewer images, jpeg or webp, or delivery by s3"
        ) from cause

    def keys_of(self, job: Job) -> JobKeys:
        return JobKeys(
            prefix=self.key_prefix,
            key_prefix=job.output.key_prefix,
            job_name=job.name,
            secret=self.key_secret,
        )

    async def _put(self, job: Job, image: EncodedImage, delivery: Delivery) -> StoredImage:
        key = self.keys_of(job).image_key(
            name=job.output.name, index=image.index, sha256=image.sha256, format=image.format
        )
        return await self.stores[delivery].put(image, key)
