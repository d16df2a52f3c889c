"""Stores for encoded images, and the keys of images. The S3 store is in `s3_storage`."""

import asyncio
import base64
import hashlib
import hmac
import re
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from pydantic import SecretStr

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFormat, StoredImage

_MAX_JOB_ID_CHARACTERS = 80
_TOKEN_BITS = 128


class ImageStore(Protocol):
    """A place that keeps images."""

    async def put(self, image: EncodedImage, key: str) -> StoredImage:
        """Keep `image` under `key` and say how the caller gets it.

        When it returns, the image is complete at its place; another `put` under the same key
        replaces it. Does not block the event loop.

        Raises StorageDenied when the deployment is set up wrongly, StorageUnavailable when a
        later try may succeed.
        """
        ...


class InlineImageStore:
    """Puts the image into the reply itself, as plain base64; the key is not used."""

    async def put(self, image: EncodedImage, key: str) -> StoredImage:
        return StoredImage(image=image, data=base64.b64encode(image.data).decode("ascii"))


class DirectoryImageStore:
    """Puts images below a directory, which is made on demand.

    A reader sees the old file or the new one, never a part.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def put(self, image: EncodedImage, key: str) -> StoredImage:
        path = self._directory / key
        if not path.resolve().is_relative_to(self._directory.resolve()):
            raise StorageDenied(f"key {key!r} leads out of the output directory")
        try:
            await asyncio.to_thread(_write_whole, path, image.data)
        except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
            raise StorageDenied(
                "PIXPOD_OUTPUT_DIR: expected a directory that the worker may write to, "
                f"got {str(self._directory)!r}: {exc.strerror}"
            ) from exc
        except OSError as exc:
            raise StorageUnavailable(f"output directory: {exc.strerror}") from exc
        return StoredImage(image=image, key=key, path=str(path))


def image_key(
    *, prefix: str, key_prefix: str, job_id: str, index: int, format: ImageFormat, secret: SecretStr
) -> str:
    """Return `<prefix>/<key_prefix>/<job id>/<index>-<token>.<format>`, the same for each retry.

    The prefixes are results of `clean_prefix` and may be empty. The job id is cut and has `_` for
    unsafe characters, so that two ids may look alike; the token is made of the whole id and
    cannot be guessed without `secret`.
    """
    shown_id = re.sub(r"[^A-Za-z0-9._-]|^\.", "_", job_id)[:_MAX_JOB_ID_CHARACTERS] or "_"
    digest = hmac.new(
        secret.get_secret_value().encode(), f"{index} {job_id}".encode(), hashlib.sha256
    )
    token = digest.hexdigest()[: _TOKEN_BITS // 4]
    parts = (prefix, key_prefix, shown_id, f"{index}-{token}.{format}")
    return "/".join(part for part in parts if part)


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
