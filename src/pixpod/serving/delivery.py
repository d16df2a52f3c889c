"""Delivers the images of a job: to the place that the job has chosen, else to another that works.

What no place takes goes to the spool, if there is one.

Knows no concrete store.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr

from pixpod.errors import Fault, PutRefused, StorageDenied, StorageUnavailable, WorkerError
from pixpod.job import Delivery, EncodedImage, EncodedResult, Job, StoredImage
from pixpod.outputs.encoding import base64_bytes
from pixpod.outputs.keys import JobKeys
from pixpod.outputs.storage import DELIVERY_S, ImageStore
from pixpod.serving.spooling import Spooling

log = logging.getLogger(__name__)

REPLY_BYTES_BESIDE_IMAGES = 20_000
"""Facts, warnings and up to a hundred links, as far as they are known before the reply."""

NAMES: Mapping[Delivery, str] = {
    Delivery.PUT: "output.put_urls",
    Delivery.S3_CONFIG: "the bucket of s3Config",
    Delivery.S3: "the deployment's bucket",
    Delivery.DIRECTORY: "the deployment's directory",
    Delivery.INLINE: "the reply",
}
"""Places for warnings."""

PlaceError = PutRefused | StorageDenied | StorageUnavailable


class CallerPlaces(Protocol):
    """Places that jobs name."""

    def open(self, job: Job) -> ImageStore:
        """Return the store of a job whose delivery `is_callers`."""
        ...

    async def check(self, job: Job) -> None:
        """Raise PutRefused if the job's place cannot be used, before any GPU time is spent."""
        ...

    def close(self) -> None:
        """End what is shared by the stores."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The images of a job, in the order of their indices, and where they are not as requested."""

    images: tuple[StoredImage, ...]
    warnings: tuple[str, ...]


@dataclass(kw_only=True, eq=False)
class ImageDelivery:
    """Puts images into stores, with one deadline for all of them.

    `stores` are the deployment's. `key_prefix` begins the keys in them. Without `falls_back`, an
    image that its place does not take fails the job.
    """

    stores: Mapping[Delivery, ImageStore]
    key_prefix: str
    key_secret: SecretStr
    max_reply_bytes: int
    callers: CallerPlaces | None = None
    falls_back: bool = True
    spool: Spooling | None = None
    total_s: float = DELIVERY_S

    async def check(self, job: Job) -> None:
        """Raise PutRefused if the place that the job names cannot be used."""
        if job.output.delivery.is_callers and self.callers is not None:
            await self.callers.check(job)

    async def deliver(self, job: Job, result: EncodedResult) -> Delivered:
        """Put each image into the job's place, or into the next one that takes it.

        A caller's place gets half of the time if another one may follow. If there is an image that
        none takes, all go to the spool. Raises the error of the first place then, or SpoolFull.
        """
        images = result.images
        loop = asyncio.get_running_loop()
        end = loop.time() + self.total_s
        done: dict[int, StoredImage] = {}
        warnings: list[str] = []
        first_error: PlaceError | None = None
        left = list(images)
        places = self._places_of(job)
        for number, place in enumerate(places):
            if place is Delivery.INLINE and number > 0 and not self._fits(left):
                break
            within_s = end - loop.time()
            if place.is_callers and len(places) > 1:
                within_s /= 2
            found, errors = await self._put_all(job, place, left, max(within_s, 0.0))
            if number > 0 and found:
                warnings.append(_warning(places[0], place, len(found), len(images), first_error))
            done |= found
            left = [image for image in left if image.index not in done]
            if not left:
                break
            first_error = first_error or errors[0]
            _log_failure(place, errors[0], len(left))
        if left:
            assert first_error is not None
            raise await self.keep(job, result, first_error) from first_error
        return Delivered(
            images=tuple(done[image.index] for image in images), warnings=tuple(warnings)
        )

    async def move_out_of_reply(self, job: Job, images: Sequence[StoredImage]) -> Delivered | None:
        """Put the inline images into the deployment's bucket; None if the job may not use it."""
        if not self.may_use_bucket(job):
            return None
        inline = [
            each.image
            for each in images
            if each.data is not None and isinstance(each.image, EncodedImage)
        ]
        found, errors = await self._put_all(job, Delivery.S3, inline, self.total_s)
        if errors:
            raise errors[0]
        warning = f"output: the reply is too large, so images are in {NAMES[Delivery.S3]}"
        return Delivered(
            images=tuple(found.get(stored.image.index, stored) for stored in images),
            warnings=(warning,),
        )

    async def find_spooled(self, job: Job) -> EncodedResult | None:
        """Return the images of a job that come from the spool; see `Spooling.find`."""
        return None if self.spool is None else await self.spool.find(job)

    async def remove_spooled(self, job: Job) -> None:
        """Delete the images of a delivered job from the spool."""
        if self.spool is not None:
            await self.spool.remove(job)

    async def keep(self, job: Job, result: EncodedResult, error: WorkerError) -> WorkerError:
        """Put the images of a job that fails into the spool; see `Spooling.keep`."""
        return error if self.spool is None else await self.spool.keep(job, result, error)

    def may_use_bucket(self, job: Job) -> bool:
        """Return whether images of a job may be put into the bucket in place of their own place."""
        return self.falls_back and job.output.fallback and Delivery.S3 in self.stores

    def keys_of(self, job: Job, place: Delivery) -> JobKeys:
        """Return the keys of a job at a place, which begin with the place's prefix."""
        prefix = self.key_prefix
        if place is Delivery.S3_CONFIG and job.bucket is not None:
            prefix = job.bucket.path
        return JobKeys(
            prefix=prefix,
            key_prefix=job.output.key_prefix,
            job_name=job.name,
            secret=self.key_secret,
        )

    def _places_of(self, job: Job) -> list[Delivery]:
        first = job.output.delivery
        places = [first]
        if not self.falls_back:
            return places
        if first.is_callers and self.may_use_bucket(job):
            places.append(Delivery.S3)
        if first is not Delivery.INLINE and Delivery.INLINE in self.stores:
            places.append(Delivery.INLINE)
        return places

    def _fits(self, images: Sequence[EncodedImage]) -> bool:
        num_bytes = sum(base64_bytes(image.size_bytes) for image in images)
        return num_bytes + REPLY_BYTES_BESIDE_IMAGES <= self.max_reply_bytes

    async def _put_all(
        self, job: Job, place: Delivery, images: Sequence[EncodedImage], within_s: float
    ) -> tuple[dict[int, StoredImage], list[PlaceError]]:
        """Put all images at once and wait for all; return those that the place took, by index."""
        if place.is_callers:
            assert self.callers is not None, "a worker that accepts such jobs has their stores"
            store = self.callers.open(job)
        else:
            store = self.stores[place]
        keys = self.keys_of(job, place)

        async def put(image: EncodedImage) -> StoredImage:
            key = keys.image_key(
                name=job.output.name, index=image.index, sha256=image.sha256, format=image.format
            )
            return await store.put(image, key, within_s=within_s)

        results = await asyncio.gather(*map(put, images), return_exceptions=True)
        found: dict[int, StoredImage] = {}
        errors: list[PlaceError] = []
        for image, result in zip(images, results, strict=True):
            if isinstance(result, StoredImage):
                found[image.index] = result
            elif isinstance(result, PlaceError):
                errors.append(result)
            else:
                raise result
        return found, errors


def _log_failure(place: Delivery, error: PlaceError, num_images: int) -> None:
    """Log the first error of a place; a caller's fault without its text, which has a host."""
    is_callers = error.fault is Fault.CALLER
    log.log(
        logging.WARNING if is_callers else logging.ERROR,
        "images not delivered",
        extra={
            "place": NAMES[place],
            "num_images": num_images,
            "error": error.code if is_callers else str(error),
        },
    )


def _warning(
    wanted: Delivery, place: Delivery, count: int, total: int, error: PlaceError | None
) -> str:
    assert error is not None, "another place is tried after a failure only"
    return f"{NAMES[wanted]}: {error.code}, so {count} of {total} images are in {NAMES[place]}"
