"""Puts images that no place takes into the spool, and finds them when their job comes again.

The job fails meanwhile, with the error of its place: its caller has no images. Work on the disk is
done on threads of its own: a network volume that hangs must not take those that encode.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import SecretStr

from pixpod.errors import PayloadError, SpoolFull, WorkerError
from pixpod.job import Delivery, EncodedResult, Job, ModelIdentity
from pixpod.outputs.result_file import fingerprint, make_result
from pixpod.outputs.spool import Spool
from pixpod.outputs.spooled_job import SpooledJob

log = logging.getLogger(__name__)

T = TypeVar("T")

SPOOLED = (
    "the images are in the deployment's spool: /retry of this job, or a job with the same "
    "idempotency_key, delivers them without generating them again"
)


@dataclass(kw_only=True, eq=False)
class Spooling:
    """Access to the spool of a deployment, whose `secret` is that of the spool.

    To write a job takes at most `keep_s`, to look for one `find_s`, and to read one `read_s`.
    """

    spool: Spool
    secret: SecretStr
    keep_s: float = 30.0
    find_s: float = 2.0
    read_s: float = 30.0
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="spool"), init=False
    )

    async def keep(self, job: Job, result: EncodedResult, error: WorkerError) -> WorkerError:
        """Keep the images of a job that fails with `error`, and return what it fails with.

        That is the same error, which then says where the images are, or SpoolFull. If the spool
        fails, it is the error as it was.
        """
        is_abandoned = threading.Event()
        spooled = self._describe(job, result)
        try:
            async with asyncio.timeout(self.keep_s):
                await self._on_thread(
                    lambda: self.spool.keep(
                        spooled, result.images, is_abandoned=is_abandoned.is_set
                    )
                )
        except SpoolFull as full:
            return SpoolFull(f"{error.code}, and {full.args[0]}")
        except OSError as exc:
            log.error("images not spooled, they are lost", extra={"error": _reason(exc)})
            return error
        finally:
            is_abandoned.set()
        log.warning("images are in the spool", extra={"num_images": len(result.images)})
        return _with_note(error)

    async def find(self, job: Job) -> EncodedResult | None:
        """Return the images of a job that was generated before. Fails no job."""
        token = self.spool.token_of(job.name, fingerprint(job, self.secret))
        try:
            async with asyncio.timeout(self.find_s):
                found = await self._on_thread(lambda: self.spool.find(token))
            if found is None:
                return None
            async with asyncio.timeout(self.read_s):
                images = await self._on_thread(lambda: self.spool.read_images(token, found))
        except (OSError, ValueError) as exc:
            log.warning("spooled images are not used", extra={"error": _reason(exc)})
            return None
        return EncodedResult(
            images=images,
            model=ModelIdentity(**found.result.model.model_dump()),
            steps=found.result.steps,
            warnings=found.result.warnings,
            adapters=found.result.adapters_used,
            dropped=found.result.dropped_images(job.request.seeds),
        )

    async def remove(self, job: Job) -> None:
        """Delete the images of a job that have been delivered. Fails no job."""
        token = self.spool.token_of(job.name, fingerprint(job, self.secret))
        try:
            async with asyncio.timeout(self.keep_s):
                await self._on_thread(lambda: self.spool.remove(token))
        except OSError as exc:
            log.warning("images stay in the spool", extra={"error": _reason(exc)})

    def _describe(self, job: Job, result: EncodedResult) -> SpooledJob:
        return SpooledJob(
            job_name=job.name,
            key_prefix=job.output.key_prefix,
            name=job.output.name,
            format=job.output.format,
            seeds=job.seeds_of_files,
            may_use_bucket=job.output.fallback or job.output.delivery is Delivery.S3,
            result=make_result(
                result,
                result.images,
                fingerprint=fingerprint(job, self.secret),
                safety=job.output.safety,
            ),
        )

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _with_note(error: WorkerError) -> WorkerError:
    if isinstance(error, PayloadError):
        return type(error)([replace(problem, hint=SPOOLED) for problem in error.problems])
    return type(error)(f"{error.args[0]}; {SPOOLED}")


def _reason(error: OSError | ValueError) -> str:
    """Return what to log of an error: no path, which nobody needs."""
    if isinstance(error, TimeoutError):
        return "took too long"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
