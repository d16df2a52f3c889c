"""MemoryBucket: a bucket without a server, and failures on demand."""

import asyncio
from dataclasses import dataclass, field

from pixpod.job import EncodedImage, ImageFile, StoredImage


@dataclass(kw_only=True, eq=False)
class MemoryBucket:
    """An ImageStore and a ResultStore that keeps `files` by key. Each link it returns is a new one.

    `fail_with` is raised by the methods of a ResultStore, after `seconds`.
    """

    fail_with: Exception | None = None
    seconds: float = 0.0
    files: dict[str, bytes] = field(default_factory=dict)
    _num_links: int = 0

    async def put(self, image: EncodedImage, key: str, *, within_s: float) -> StoredImage:
        self.files[key] = image.data
        return self._linked(image, key)

    async def put_file(self, data: bytes, key: str) -> None:
        await self._misbehave()
        self.files[key] = data

    async def get_file(self, key: str, max_bytes: int) -> bytes | None:
        await self._misbehave()
        data = self.files.get(key)
        return None if data is None else data[:max_bytes]

    async def find(self, image: ImageFile, key: str) -> StoredImage | None:
        await self._misbehave()
        is_there = len(self.files.get(key, b"")) == image.size_bytes
        return self._linked(image, key) if is_there else None

    def _linked(self, image: ImageFile, key: str) -> StoredImage:
        self._num_links += 1
        return StoredImage(image=image, key=key, url=f"memory:{key}?link={self._num_links}")

    async def _misbehave(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.fail_with is not None:
            raise self.fail_with
