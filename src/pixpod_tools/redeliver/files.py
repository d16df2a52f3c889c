"""The files of dead letters, in the bucket or the output directory of a deployment."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError

from pixpod.job import Delivery
from pixpod.outputs.dead_letter import MAX_LETTER_BYTES
from pixpod.outputs.keys import LETTER_SUFFIX
from pixpod.outputs.s3_storage import connect
from pixpod.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""For one request: a page of a listing, or a small file."""


class FilesError(Exception):
    """The place of the letters does not do what is requested. The text says what, no secret."""


class LetterFiles(Protocol):
    """The dead letters of a deployment. Methods block, and raise FilesError."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the key of each letter that begins with `prefix`."""
        ...

    def read(self, key: str) -> bytes | None:
        """Return a file, cut after one byte too many; None if it is gone."""
        ...

    def delete(self, key: str) -> None:
        """Delete a file."""
        ...


def open_files(settings: Settings) -> LetterFiles:
    """Return the letters of the deployment that has these settings. Raises FilesError."""
    place = settings.letter_place
    if place is Delivery.S3 and settings.s3 is not None:
        with _translating("open the bucket"):
            client = connect(settings.s3, Session(), CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        return BucketFiles(client, settings.s3.bucket)
    return DirectoryFiles(settings.output_dir)


class BucketFiles:
    """Letters in an S3 bucket. S3 finds no suffix, so all keys below a prefix are listed."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keys(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        with _translating("list the bucket"):
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for each in page.get("Contents", ()):
                    if each["Key"].endswith(LETTER_SUFFIX):
                        yield each["Key"]

    def read(self, key: str) -> bytes | None:
        with _translating("read a letter"):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except self._client.exceptions.NoSuchKey:
                return None
            with answer["Body"] as body:
                return body.read(MAX_LETTER_BYTES + 1)

    def delete(self, key: str) -> None:
        with _translating("delete a letter"):
            self._client.delete_object(Bucket=self._bucket, Key=key)


class DirectoryFiles:
    """Letters below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keys(self, prefix: str) -> Iterator[str]:
        for path in self._directory.rglob(f"*{LETTER_SUFFIX}"):
            key = path.relative_to(self._directory).as_posix()
            if key.startswith(prefix):
                yield key

    def read(self, key: str) -> bytes | None:
        with _translating("read a letter"):
            try:
                with (self._directory / key).open("rb") as file:
                    return file.read(MAX_LETTER_BYTES + 1)
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        with _translating("delete a letter"):
            (self._directory / key).unlink(missing_ok=True)


@contextmanager
def _translating(action: str) -> Iterator[None]:
    try:
        yield
    except ClientError as exc:
        raise FilesError(f"cannot {action}: {exc.response['Error']['Code']}") from exc
    except BotoCoreError as exc:  # its text may quote a URL or a parameter
        raise FilesError(f"cannot {action}: {type(exc).__name__}") from exc
    except OSError as exc:
        raise FilesError(f"cannot {action}: {exc.strerror}") from exc
