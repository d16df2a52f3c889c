"""Answers a job from the result that an earlier execution has stored.

The platform gives a job out again if its result was lost or its worker died after the upload. Knows
no concrete store.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import SecretStr

import pixpod
from pixpod.contract.problems import wrong
from pixpod.errors import InvalidInput, StorageUnavailable, WorkerError
from pixpod.job import (
    EncodedResult,
    ImageFile,
    Job,
    ModelIdentity,
    StoredImage,
    StoredResult,
)
from pixpod.outputs.keys import JobKeys
from pixpod.outputs.result_file import (
    MAX_RESULT_BYTES,
    ResultFile,
    fingerprint,
    make_result,
    open_result,
    seal_result,
)
from pixpod.outputs.storage import ResultStore

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOKUP_LIMIT_S = 2.0
RETRY_WAIT_S = 0.2
"""One fault of the bucket that passes would otherwise cost the GPU time of a whole job."""

_REMEMBERED_JOBS = 1_000


@dataclass(kw_only=True, eq=False)
class StoredResults:
    """Result files in the deployment's bucket, beside the images of their jobs.

    To look one up or to write one takes at most `limit_s`.
    """

    store: ResultStore
    secret: SecretStr
    limit_s: float = LOOKUP_LIMIT_S
    _begun: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_JOBS), init=False)
    _writes: set["asyncio.Task[None]"] = field(default_factory=set, init=False)

    async def find_or_generate(
        self, job: Job, keys: JobKeys, generate: Callable[[], Coroutine[Any, Any, T]]
    ) -> T | StoredResult:
        """Return the stored result of this job, else what `generate` returns.

        The look-up runs while files are fetched and the request waits for its model and the GPU.
        It takes at most `limit_s`, and fails no job. A job with an `idempotency_key`, or that this
        worker has begun before, waits for it. Raises InvalidInput for a key that was used for
        another request.
        """
        may_be_stored = job.idempotency_key is not None or job.name in self._begun
        self._begun.append(job.name)
        lookup = asyncio.create_task(self._find(job, keys))
        generating: asyncio.Task[T] | None = None
        try:
            if may_be_stored:
                await asyncio.wait({lookup})
            else:
                generating = asyncio.create_task(generate())
                await asyncio.wait({lookup, generating}, return_when=asyncio.FIRST_COMPLETED)
            return _outcome(lookup) or await (generating or generate())
        finally:
            tasks = [task for task in (lookup, generating) if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def keep(
        self, job: Job, keys: JobKeys, made: EncodedResult, images: tuple[StoredImage, ...]
    ) -> None:
        """Write the result of a job whose images are all stored. Fails no job.

        In the background: the file is of use once the reply is lost, which takes longer than the
        write. Another job with the same `idempotency_key` may come at once, so that waits.
        """
        result = make_result(
            made,
            [stored.image for stored in images],
            fingerprint=fingerprint(job, self.secret),
            safety=job.output.safety,
        )
        write = asyncio.create_task(self._write(result, keys))
        self._writes.add(write)
        write.add_done_callback(self._end_write)
        if job.idempotency_key is not None:
            await asyncio.wait({write})

    async def settle(self) -> None:
        """Wait for the results that are being written."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def _write(self, result: ResultFile, keys: JobKeys) -> None:
        key = keys.result_key
        data = seal_result(result, key=key, secret=self.secret)
        async with asyncio.timeout(self.limit_s):
            await _try_twice(partial(self.store.put_file, data, key))

    def _end_write(self, write: "asyncio.Task[None]") -> None:
        self._writes.discard(write)
        if not write.cancelled() and (error := write.exception()):
            _log_failure("result not stored", error)

    async def _find(self, job: Job, keys: JobKeys) -> StoredResult | None:
        async with asyncio.timeout(self.limit_s):
            result = await self._read(keys)
            if result is None or result.version != pixpod.__version__:
                return None
            if result.safety != job.output.safety:  # the deployment's choice, not the caller's
                return None
            if result.fingerprint != fingerprint(job, self.secret):
                _check_key(job)
                return None
            files = result.image_files(job.seeds_of_files, job.output.format)
            finds = (partial(self.store.find, file, _key_of(file, job, keys)) for file in files)
            found = await asyncio.gather(*map(_try_twice, finds))
        images = [image for image in found if image]
        if len(images) < len(files):
            log.info("stored result has lost images", extra={"num_lost": len(files) - len(images)})
            return None
        return StoredResult(
            images=tuple(images),
            model=ModelIdentity(**result.model.model_dump()),
            steps=result.steps,
            warnings=result.warnings,
            adapters=result.adapters_used,
            dropped=result.dropped_images(job.request.seeds),
        )

    async def _read(self, keys: JobKeys) -> ResultFile | None:
        key = keys.result_key
        data = await _try_twice(partial(self.store.get_file, key, MAX_RESULT_BYTES + 1))
        if data is None:
            return None
        try:
            return open_result(data, key=key, secret=self.secret)
        except ValueError as exc:
            log.warning("stored result is not used", extra={"reason": str(exc)})
            return None


async def _try_twice(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call a ResultStore, once more if that may help."""
    try:
        return await call()
    except StorageUnavailable:
        await asyncio.sleep(RETRY_WAIT_S)
        return await call()


def _check_key(job: Job) -> None:
    """Raise InvalidInput if a result of another request has this job's `idempotency_key`."""
    if job.idempotency_key is not None:
        accepted = "a key that was not used for another request"
        raise InvalidInput([wrong("idempotency_key", job.idempotency_key, accepted)])


def _key_of(file: ImageFile, job: Job, keys: JobKeys) -> str:
    return keys.image_key(
        name=job.output.name, index=file.index, sha256=file.sha256, format=file.format
    )


def _outcome(lookup: "asyncio.Task[StoredResult | None]") -> StoredResult | None:
    """Return what a look-up has found; None as well if it has not ended or has failed.

    Raises InvalidInput if that is what it has found.
    """
    if not lookup.done():
        return None
    error = lookup.exception()
    if error is None or isinstance(error, InvalidInput):
        return lookup.result()
    _log_failure("stored result not looked up", error)
    return None


def _log_failure(message: str, error: BaseException) -> None:
    """Log why no job is the worse for it; an unexpected error with its traceback."""
    is_expected = isinstance(error, WorkerError | TimeoutError)
    extra = {"error": str(error) or "took too long"}
    log.warning(message, extra=extra, exc_info=None if is_expected else error)
