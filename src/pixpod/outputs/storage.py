"""Stores for encoded images. The S3 store is in `s3_storage`, keys are in `keys`."""

import asyncio
import base64
import re
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFile, StoredImage

DELIVERY_S = 60.0
"""For all tries of all images of a job: the GPU may be idle meanwhile."""


class ImageStore(Protocol):
    """A place that keeps images."""

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        """Keep `image` under `key` and say how the caller gets it.

        When it returns, the image is complete at its place; another `put` under the same key
        replaces it. Does not block the event loop. All tries together take at most `within_s`.

        Raises StorageDenied when the deployment is set up wrongly, StorageUnavailable when a
        later try may succeed.
        """
        ...


class FileStore(Protocol):
    """A place that keeps small files beside images.

    Its methods raise as `ImageStore.put` does; they give up sooner, since no job depends on them.
    """

    async def put_file(self, data: bytes, key: str) -> None:
        """Keep a small file, which replaces another one of this key."""
        ...


class ResultStore(FileStore, Protocol):
    """A place that keeps images and finds them again, and small files beside them."""

    async def get_file(self, key: str, max_bytes: int) -> bytes | None:
        """Return a file, cut after `max_bytes`; None if there is none, or none that we may read."""
        ...

    async def find(self, image: ImageFile, key: str) -> StoredImage | None:
        """Return a fresh way to an image, or None unless a file of its size is there."""
        ...


class InlineImageStore:
    """Puts the image into the reply itself, as plain base64; the key is not used."""

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        return StoredImage(image=image, data=base64.b64encode(image.data).decode("ascii"))


class DirectoryImageStore:
    """Puts images below a directory, which is made on demand. Also a FileStore.

    A reader sees the old file or the new one, never a part.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        return StoredImage(image=image, key=key, path=str(await self._write(image.data, key)))

    async def put_file(self, data: bytes, key: str) -> None:
        await self._write(data, key)

    async def _write(self, data: bytes, key: str) -> Path:
        path = self._directory / key
        if not path.resolve().is_relative_to(self._directory.resolve()):
            raise StorageDenied(f"key {key!r} leads out of the output directory")
        try:
            await asyncio.to_thread(_write_whole, path, data)
        except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
            raise StorageDenied(
                "PIXPOD_OUTPUT_DIR: expected a directory that the worker may write to, "
                f"got {str(self._directory)!r}: {exc.strerror}"
            ) from exc
        except OSError as exc:
            raise StorageUnavailable(f"output directory: {exc.strerror}") from exc
        return path


def clean_prefix(value: str) -> str:
    """Return a key prefix without a slash at its end. Raises ValueError for one that is unsafe."""
    prefix = value.removesuffix("/")
    if not re.fullmatch(r"[A-Za-z0-9._/-]{0,200}", prefix):
        raise ValueError("expected up to 200 of A-Z a-z 0-9 . _ - /")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ValueError("expected parts other than '', '.' and '..' between slashes")
    return prefix


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
