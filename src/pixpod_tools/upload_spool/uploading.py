"""Goes through the spool, uploads what may be uploaded, and deletes it from the spool then."""

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from pixpod.errors import WorkerError
from pixpod.job import EncodedImage
from pixpod.outputs.keys import JobKeys
from pixpod.outputs.result_file import seal_result
from pixpod.outputs.spool import Spool
from pixpod.outputs.spooled_job import SpooledJob
from pixpod.outputs.storage import DELIVERY_S, ImageStore, ResultStore


class Outcome(StrEnum):
    """The outcome of a folder of the spool."""

    UPLOADED = "uploaded"
    WAITING = "to be uploaded"
    FAILED = "stays: the bucket failed"
    PRIVATE = "stays: its caller keeps images out of the bucket"
    UNREADABLE = "stays: damaged, forged or of another version"
    UNFINISHED = "stays: a worker is writing it, or has ended while it did"
    GONE = "delivered by a worker meanwhile"

    @property
    def is_fault(self) -> bool:
        return self in (Outcome.FAILED, Outcome.UNREADABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A folder of the spool. `keys` are those of its images in the bucket, once they are there."""

    folder: str
    job_name: str | None
    num_images: int
    size_bytes: int
    written_at: float
    outcome: Outcome
    keys: tuple[str, ...] = ()


class Bucket(ImageStore, ResultStore, Protocol):
    """The deployment's bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploader:
    """The bucket of a deployment, and what keys of images in it are made of."""

    spool: Spool
    store: Bucket
    key_prefix: str
    secret: SecretStr

    async def upload(self, row: Row, on_bytes: Callable[[int], object]) -> Row:
        """Upload the images of a job and its result, so that it is answered if it comes again.

        Raises StorageDenied or StorageUnavailable.
        """
        try:
            job = self.spool.find(row.folder)
            if job is None:
                return replace(row, outcome=Outcome.GONE)
            images = self.spool.read_images(row.folder, job)
        except FileNotFoundError:
            return replace(row, outcome=Outcome.GONE)
        except (OSError, ValueError):
            return replace(row, outcome=Outcome.UNREADABLE)
        keys = JobKeys(
            prefix=self.key_prefix,
            key_prefix=job.key_prefix,
            job_name=job.job_name,
            secret=self.secret,
        )

        async def put(image: EncodedImage) -> str:
            key = keys.image_key(
                name=job.name, index=image.index, sha256=image.sha256, format=image.format
            )
            await self.store.put(image, key, within_s=DELIVERY_S)
            on_bytes(image.size_bytes)
            return key

        stored = await asyncio.gather(*map(put, images))
        result = seal_result(job.result, key=keys.result_key, secret=self.secret)
        await self.store.put_file(result, keys.result_key)
        self.spool.remove(row.folder)
        return replace(row, outcome=Outcome.UPLOADED, keys=tuple(stored))


def list_spool(spool: Spool) -> list[Row]:
    """Return what is in the spool, oldest first."""
    return list(_rows(spool))


async def upload_all(
    rows: list[Row], uploader: Uploader, on_bytes: Callable[[int], object]
) -> tuple[list[Row], WorkerError | None]:
    """Upload what waits, one job after the other, and return all rows as they are then.

    Ends at the first error of the bucket, which the next job would have as well.
    """
    done: list[Row] = []
    error: WorkerError | None = None
    for row in rows:
        if row.outcome is Outcome.WAITING:
            try:
                row = await uploader.upload(row, on_bytes) if error is None else _failed(row)
            except WorkerError as exc:
                error, row = exc, _failed(row)
        done.append(row)
    return done, error


def _failed(row: Row) -> Row:
    return replace(row, outcome=Outcome.FAILED)


def _rows(spool: Spool) -> Iterator[Row]:
    for path in spool.folders():
        try:
            written_at = path.lstat().st_mtime
        except FileNotFoundError:  # a worker has delivered it
            continue
        if not re.fullmatch("[0-9a-f]{32}", path.name):
            outcome = Outcome.UNFINISHED if path.suffix == ".tmp" else Outcome.UNREADABLE
            yield _without_job(path, written_at, outcome)
            continue
        try:
            job = spool.find(path.name)
        except (OSError, ValueError):
            job = None
        if job is None:
            yield _without_job(path, written_at, Outcome.UNREADABLE)
        else:
            yield _with_job(path, written_at, job)


def _without_job(path: Path, written_at: float, outcome: Outcome) -> Row:
    sizes = [each.lstat().st_size for each in path.glob("*") if each.is_file()]
    return Row(
        folder=path.name,
        job_name=None,
        num_images=0,
        size_bytes=sum(sizes),
        written_at=written_at,
        outcome=outcome,
    )


def _with_job(path: Path, written_at: float, job: SpooledJob) -> Row:
    return Row(
        folder=path.name,
        job_name=job.job_name,
        num_images=len(job.result.images),
        size_bytes=sum(image.size_bytes for image in job.result.images),
        written_at=written_at,
        outcome=Outcome.WAITING if job.may_use_bucket else Outcome.PRIVATE,
    )
