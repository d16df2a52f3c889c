"""A folder on a disk for images that no place has taken, until their jobs come again.

    <directory>/<token of the deployment>/<token of the job>/
        job.sealed                  an HMAC, a line feed, and a SpooledJob as JSON
        <index>-<sha256>.<format>   the images

It has no prompt, no URL and no credentials. Folders have the mode 0700, files 0600. The folder of a
job is written under a temporary name and renamed, so it is there as a whole or not at all. Whoever
can write to the disk may forge, copy or cut files, so they count only with the HMAC of the job's
file and the SHA-256 of each image.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr, ValidationError

from pixpod.errors import SpoolFull
from pixpod.job import EncodedImage, ImageFormat
from pixpod.outputs.keys import keyed_hash
from pixpod.outputs.private_files import read_bounded, sync_folder, write_private
from pixpod.outputs.result_file import ResultFile, SealedPart, seal, unseal

MAX_JOB_FILE_BYTES = 100_000
_JOB_FILE = "job.sealed"
_TOKEN_CHARACTERS = 32
_FOLDER_TRIES = 3


class SpooledJob(SealedPart):
    """One job in the spool. `name` begins the names of its files, see `OutputOptions`.

    `may_use_bucket` is false if the job keeps its images out of the deployment's bucket.
    """

    job_name: str
    key_prefix: str
    name: str
    format: ImageFormat
    seeds: tuple[int, ...]
    may_use_bucket: bool
    result: ResultFile

    def file_names(self) -> list[str]:
        """Return the names of the images, which depend on their bytes."""
        return [
            f"{index}-{image.sha256}.{self.format}"
            for index, image in enumerate(self.result.images)
        ]


class Spool:
    """The spool of one deployment, whose workers share `secret`. Other deployments do not see it.

    All methods block. They raise OSError for a disk that fails.
    """

    def __init__(self, directory: Path, *, secret: SecretStr, max_bytes: int) -> None:
        self._directory = directory
        self._secret = secret
        self._max_bytes = max_bytes
        self.folder = directory / self._token("deployment")

    def token_of(self, job_name: str, fingerprint: str) -> str:
        """Return the name of the folder of a job: another request has another one."""
        return self._token(f"job {fingerprint} {job_name}")

    def keep(
        self,
        job: SpooledJob,
        images: Sequence[EncodedImage],
        *,
        is_abandoned: Callable[[], bool] = lambda: False,
    ) -> None:
        """Keep a job, unless it is here or is abandoned while its images are written.

        Raises SpoolFull if there is no room.
        """
        token = self.token_of(job.job_name, job.result.fingerprint)
        if self._is_sound(token):
            return
        self._check_room(sum(image.size_bytes for image in images))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = self._unfinished()
        try:
            unfinished.mkdir(mode=0o700)
            for name, image in zip(job.file_names(), images, strict=True):
                write_private(unfinished / name, image.data)
            content = seal(job.model_dump_json(), key=_seal_key(token), secret=self._secret)
            write_private(unfinished / _JOB_FILE, content)
            sync_folder(unfinished)
            if not is_abandoned():
                self._put_in_place(unfinished, token)
                sync_folder(self.folder)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SpoolFull(f"the disk of the spool is full: {_ADVICE}") from exc
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def find(self, token: str) -> SpooledJob | None:
        """Return a job; None if it is not here. Raises ValueError for one that does not count."""
        try:
            data = read_bounded(self.folder / token / _JOB_FILE, MAX_JOB_FILE_BYTES)
        except FileNotFoundError:
            return None
        content = unseal(data, key=_seal_key(token), secret=self._secret)
        try:
            return SpooledJob.model_validate_json(content)
        except ValidationError as exc:
            raise ValueError("expected a job of this version, got something else") from exc

    def read_images(self, token: str, job: SpooledJob) -> tuple[EncodedImage, ...]:
        """Return the images of a job. Raises ValueError if one of them has changed."""
        return tuple(
            EncodedImage(
                index=index,
                seed=seed,
                format=job.format,
                data=_read_image(self.folder / token / name, image.sha256, image.size_bytes),
                **image.model_dump(),
            )
            for index, (seed, name, image) in enumerate(
                zip(job.seeds, job.file_names(), job.result.images, strict=True)
            )
        )

    def remove(self, token: str) -> None:
        """Delete a job that has been delivered, if it is here."""
        unfinished = self._unfinished()
        with suppress(FileNotFoundError):
            (self.folder / token).rename(unfinished)
            shutil.rmtree(unfinished)

    def folders(self) -> list[Path]:
        """Return what is in the spool, oldest first: jobs, and what is no job."""
        if not self.folder.is_dir():
            return []
        return sorted(self.folder.iterdir(), key=lambda path: path.lstat().st_mtime)

    def size_bytes(self) -> int:
        return sum(_sizes(self.folder))

    def _check_room(self, num_bytes: int) -> None:
        used = self.size_bytes()
        if used + num_bytes > self._max_bytes:
            raise SpoolFull(
                f"the spool has {used} of at most {self._max_bytes} bytes, which leaves no room "
                f"for {num_bytes} more: {_ADVICE}, or raise PIXPOD_SPOOL_MAX_BYTES"
            )

    def _is_sound(self, token: str) -> bool:
        try:
            job = self.find(token)
            return job is not None and bool(self.read_images(token, job))
        except (OSError, ValueError):
            return False

    def _put_in_place(self, unfinished: Path, token: str) -> None:
        """Rename a folder to that of its job, unless another worker has been first.

        A folder that is there but does not count is renamed, and stays.
        """
        for _ in range(_FOLDER_TRIES):
            try:
                unfinished.rename(self.folder / token)
                return
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if self._is_sound(token):
                return
            with suppress(FileNotFoundError):
                (self.folder / token).rename(self.folder / f"{token}.{uuid4().hex[:8]}.unusable")
        raise OSError(errno.EBUSY, "the folder of the job comes and goes")

    def _unfinished(self) -> Path:
        return self.folder / f".{uuid4().hex}.tmp"

    def _token(self, message: str) -> str:
        return keyed_hash(self._secret, f"spool {message}")[:_TOKEN_CHARACTERS]


_ADVICE = "empty it with scripts/upload_spool"


def _seal_key(token: str) -> str:
    return f"spool {token}"


def _read_image(path: Path, sha256: str, size_bytes: int) -> bytes:
    data = read_bounded(path, size_bytes)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("expected the image that was written, got another one")
    return data


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of all files below a folder; others may come and go meanwhile."""
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(path, name).lstat().st_size
