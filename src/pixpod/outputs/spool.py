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
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr

from pixpod.errors import SpoolFull
from pixpod.job import EncodedImage
from pixpod.outputs.keys import keyed_hash
from pixpod.outputs.private_files import read_bounded, sync_folder, write_private
from pixpod.outputs.spooled_job import SpooledJob, open_job, read_images, seal_job

MAX_JOB_FILE_BYTES = 100_000
_JOB_FILE = "job.sealed"
_TOKEN_CHARACTERS = 32
_FOLDER_TRIES = 20


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
        if self._is_sound(self.folder / token, token):
            return
        self._check_room(sum(image.size_bytes for image in images))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = self._unfinished()
        try:
            unfinished.mkdir(mode=0o700)
            for name, image in zip(job.file_names(), images, strict=True):
                write_private(unfinished / name, image.data)
            sealed = seal_job(job, token=token, secret=self._secret)
            write_private(unfinished / _JOB_FILE, sealed)
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
        return self._find_in(self.folder / token, token)

    def read_images(self, token: str, job: SpooledJob) -> tuple[EncodedImage, ...]:
        """Return the images of a job. Raises ValueError if one of them has changed."""
        return read_images(self.folder / token, job)

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

    def _find_in(self, folder: Path, token: str) -> SpooledJob | None:
        try:
            data = read_bounded(folder / _JOB_FILE, MAX_JOB_FILE_BYTES)
        except FileNotFoundError:
            return None
        return open_job(data, token=token, secret=self._secret)

    def _is_sound(self, folder: Path, token: str) -> bool:
        try:
            job = self._find_in(folder, token)
            return job is not None and bool(read_images(folder, job))
        except (OSError, ValueError):
            return False

    def _put_in_place(self, unfinished: Path, token: str) -> None:
        """Rename a folder to that of its job, unless another worker has been first.

        A folder that is there but does not count is renamed, and stays.
        """
        folder = self.folder / token
        for _ in range(_FOLDER_TRIES):
            try:
                unfinished.rename(folder)
                return
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if self._is_sound(folder, token):
                return
            with suppress(FileNotFoundError):
                self._set_aside(folder, token)
        raise OSError(errno.EBUSY, "the folder of the job comes and goes")

    def _set_aside(self, folder: Path, token: str) -> None:
        aside = folder.rename(self.folder / f"{token}.{uuid4().hex[:8]}.unusable")
        if not self._is_sound(aside, token):
            return
        try:  # another worker has just written it
            aside.rename(folder)
        except OSError:  # and yet another one
            shutil.rmtree(aside)

    def _unfinished(self) -> Path:
        return self.folder / f".{uuid4().hex}.tmp"

    def _token(self, message: str) -> str:
        return keyed_hash(self._secret, f"spool {message}")[:_TOKEN_CHARACTERS]


_ADVICE = "empty it with scripts/upload_spool"


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of all files below a folder; others may come and go meanwhile."""
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(path, name).lstat().st_size
