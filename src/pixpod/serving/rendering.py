"""Renders replies to jobs, and finds a way for those that are too large for the platform."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from pixpod.contract.payload import render_error, render_result
from pixpod.contract.upscale import too_many_pixels
from pixpod.errors import Fault, ResultTooLarge, WorkerError
from pixpod.job import Delivery, EncodedResult, Job, JobResult, StoredImage
from pixpod.outputs.encoding import base64_bytes, max_encoded_bytes
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.replies import BulkyReply, json_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplyRenderer:
    """Renders results as large as the platform takes them.

    `keep` gets the results whose inline images were put into the bucket.
    """

    delivery: ImageDelivery
    keep: Callable[[Job, EncodedResult, tuple[StoredImage, ...]], Awaitable[None]]

    def check_size(self, job: Job) -> None:
        """Raise ResultTooLarge for results that cannot fit, before any GPU time is spent."""
        (width, height), num_images = job.request.output_size, job.num_images
        if job.request.upscaler and (reason := too_many_pixels((width, height), num_images)):
            raise ResultTooLarge(f"upscale: {reason}: request a smaller scale, or a size")
        if job.output.delivery is not Delivery.INLINE or self.delivery.may_use_bucket(job):
            return
        output = job.output
        each = max_encoded_bytes(width, height, output.format, output.quality)
        largest = num_images * base64_bytes(each)
        if job.made_controls:
            generated = job.request.width, job.request.height
            control = max_encoded_bytes(*generated, output.format, output.quality)
            largest += len(job.made_controls) * base64_bytes(control)
        if largest > self.delivery.max_reply_bytes:
            raise ResultTooLarge(
                f"{num_images} inline {output.format} images of {width}x{height} may take "
                f"{largest} bytes, and a reply holds {self.delivery.max_reply_bytes}: request "
                "fewer images, jpeg or webp, or delivery by s3"
            )

    async def render(
        self, job: Job, result: JobResult, files: EncodedResult | None
    ) -> dict[str, Any]:
        """Render a result. Inline images that do not fit into a reply go to the bucket."""
        reply = render_result(result)
        if files is None or all(stored.data is None for stored in result.files):
            return reply
        if json_bytes(reply) > self.delivery.max_reply_bytes:
            return await self._render_links(job, result, files)
        return BulkyReply(reply, lambda: self._shrink(job, result, files))

    async def _render_links(
        self, job: Job, result: JobResult, files: EncodedResult
    ) -> dict[str, Any]:
        """Render a result with its images in the bucket in place of the reply.

        If the bucket fails, they go to the spool. Raises ResultTooLarge or SpoolFull.
        """
        moved, cause = None, None
        try:
            moved = await self.delivery.move_out_of_reply(job, result.files)
        except WorkerError as exc:
            log.error("images not stored in place of inline ones", exc_info=exc)
            cause = exc
        if moved is None:
            num_bytes = sum(stored.image.size_bytes for stored in result.files)
            error: WorkerError = ResultTooLarge(
                f"a reply cannot hold {len(result.files)} inline images of together {num_bytes} "
                "bytes: request fewer images, jpeg or webp, or delivery by s3"
            )
            if cause is not None:
                error = await self.delivery.keep(job, files, error)
            raise error from cause
        moved_files = replace(files, warnings=(*files.warnings, *moved.warnings))
        await self.keep(job, moved_files, moved.images)
        warnings = (*result.warnings, *moved.warnings)
        return render_result(replace(result.with_files(moved.images), warnings=warnings))

    async def _shrink(self, job: Job, result: JobResult, files: EncodedResult) -> dict[str, Any]:
        """Return the reply to a job whose inline images the platform has refused."""
        try:
            return await self._render_links(job, result, files)
        except WorkerError as error:
            return render_failure(error)


def render_failure(error: WorkerError) -> dict[str, Any]:
    """Log the error of a job, and return the reply that reports it.

    A caller's fault is logged without its text, which quotes the payload; others with their cause.
    """
    if error.fault is Fault.CALLER:
        log.warning("job refused", extra={"code": error.code})
    else:
        log.error("job failed", extra={"code": error.code, "fault": error.fault}, exc_info=error)
    return render_error(error)
