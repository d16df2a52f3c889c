"""The files of one job in the spool."""

import hashlib
from dataclasses import fields
from pathlib import Path

from pydantic import SecretStr, ValidationError

from pixpod.job import EncodedImage, ImageFormat
from pixpod.outputs.private_files import read_bounded
from pixpod.outputs.result_file import ResultFile, SealedPart, seal, unseal


class SpooledJob(SealedPart):
    """One job in the spool. `name` begins the names of its files, see `OutputOptions`.

    `may_use_bucket` is false if the job keeps its images out of the deployment's bucket.
    """

    job_name: str
    key_prefix: str
    name: str
    format: ImageFormat
    seeds: tuple[int | None, ...]
    may_use_bucket: bool
    result: ResultFile

    def file_names(self) -> list[str]:
        """Return the names of the images, which depend on their bytes."""
        return [f"{each.index}-{each.sha256}.{self.format}" for each in self.result.images]


def seal_job(job: SpooledJob, *, token: str, secret: SecretStr) -> bytes:
    """Return the file of a job in the folder `token`."""
    return seal(job.model_dump_json(), key=_key(token), secret=secret)


def open_job(data: bytes, *, token: str, secret: SecretStr) -> SpooledJob:
    """Return the job of a file. Raises ValueError if `seal_job` did not make it for this folder."""
    content = unseal(data, key=_key(token), secret=secret)
    try:
        return SpooledJob.model_validate_json(content)
    except ValidationError as exc:
        raise ValueError("expected a job of this version, got something else") from exc


def read_images(folder: Path, job: SpooledJob) -> tuple[EncodedImage, ...]:
    """Return the images in a job's folder. Raises ValueError if one of them has changed."""
    files = job.result.image_files(job.seeds, job.format)
    return tuple(
        EncodedImage(
            data=_read_image(folder / name, file.sha256, file.size_bytes),
            **{each.name: getattr(file, each.name) for each in fields(file)},
        )
        for name, file in zip(job.file_names(), files, strict=True)
    )


def _read_image(path: Path, sha256: str, size_bytes: int) -> bytes:
    data = read_bounded(path, size_bytes)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("expected the image that was written, got another one")
    return data


def _key(token: str) -> str:
    return f"spool {token}"
