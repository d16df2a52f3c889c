"""Reads the images and weights that a job names, in two rounds of refusals.

`parse_source` reports what can be seen in the payload, before any I/O. Reading then reports all
that can be seen in what was fetched, at once.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from pixpod.errors import ImageRefused, WeightsRefused
from pixpod.inputs.client import GuardedClient, ReadLimits
from pixpod.inputs.image_files import MAX_IMAGE_BYTES
from pixpod.inputs.inline import decode_inline
from pixpod.inputs.refusals import Refused, to_error
from pixpod.inputs.targets import Target, Targets, Use
from pixpod.inputs.weights_files import (
    LENGTH_BYTES,
    WeightsHeader,
    header_bytes,
    read_weights_header,
)
from pixpod.weights.disk import disk_faults

T = TypeVar("T")

IMAGE_S = 20.0
WEIGHTS_S = 120.0
MAX_WEIGHTS_BYTES = 2 * 2**30
MAX_READS = 4
"""Files of one job that are read at a time: others must not wait behind a job with many."""

DECODING_THREADS = 2

_IMAGE_LIMITS = ReadLimits(max_bytes=MAX_IMAGE_BYTES, total_s=IMAGE_S, too_large=ImageRefused)


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineData:
    """A file that was part of the payload."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedWeights:
    """Weights that were downloaded. `sha256` is that of the bytes that arrived."""

    header: WeightsHeader
    sha256: str
    etag: str | None


ImageSource = Target | InlineData


def parse_source(text: str, targets: Targets) -> ImageSource:
    """Check a URL, a `data:` URI or base64 without any I/O. Raises Refused."""
    if "://" in text[:16]:
        return targets.parse(text, Use.READ)
    return InlineData(data=decode_inline(text, MAX_IMAGE_BYTES))


async def read_all(reads: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
    """Return what a job names, by fields; at most MAX_READS of them are read at a time.

    Raises one error for all that is refused, once all has been tried. Any other error ends the
    reads that are in progress.
    """
    turns = asyncio.Semaphore(MAX_READS)
    found: dict[str, T] = {}
    refusals: dict[str, Refused] = {}

    async def read(path: str, start: Callable[[], Awaitable[T]]) -> None:
        try:
            async with turns:
                found[path] = await start()
        except Refused as refused:
            refusals[path] = refused

    tasks = [asyncio.create_task(read(path, start)) for path, start in reads.items()]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    if refusals:
        raise to_error({path: refusals[path] for path in reads if path in refusals})
    return {path: found[path] for path in reads}


class Intake:
    """Fetches and decodes for all jobs of a worker. Close it in the end.

    Errors are Refused; `read_all` makes one error of those of a job.
    """

    def __init__(
        self, client: GuardedClient, *, max_weights_bytes: int = MAX_WEIGHTS_BYTES
    ) -> None:
        self._client = client
        self._weights_limits = ReadLimits(
            max_bytes=max_weights_bytes, total_s=WEIGHTS_S, too_large=WeightsRefused
        )
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    def close(self) -> None:
        """Take no further calls."""
        self._threads.shutdown(cancel_futures=True)

    async def read_image(self, source: ImageSource, decode: Callable[[bytes], T]) -> T:
        """Return what `decode_image` or `decode_mask` makes of a file. Raises Refused."""
        if isinstance(source, InlineData):
            data = source.data
        else:
            data = await self._client.read(source, _IMAGE_LIMITS, _join)
        return await self.run(decode, data)

    async def read_weights(
        self, target: Target, file: Path, etag: str | None = None
    ) -> ReceivedWeights | None:
        """Download safetensors to `file`. The download ends at a header that is not acceptable.

        Returns None, without a file, if the ETag of what the URL has is still `etag`. Leaves no
        file behind if it fails. Raises Refused, and the errors of `disk_faults`.
        """

        async def take(blocks: AsyncIterator[bytes]) -> ReceivedWeights:
            with _new_file(file) as opened:
                return await self._take_weights(blocks, opened)

        found = await self._client.read_if_changed(target, self._weights_limits, take, etag)
        return None if found is None else replace(found[0], etag=found[1])

    async def _take_weights(
        self, blocks: AsyncIterator[bytes], opened: BinaryIO
    ) -> ReceivedWeights:
        digest = hashlib.sha256()
        start = bytearray()
        header: WeightsHeader | None = None
        num_bytes = 0
        async for block in blocks:
            num_bytes += len(block)
            if header is None:
                start += block
                if len(start) < LENGTH_BYTES or len(start) < header_bytes(start):
                    continue
                block = bytes(start)
                max_bytes = self._weights_limits.max_bytes
                header = await self.run(read_weights_header, block, max_bytes)
            if num_bytes > header.size_bytes:
                break
            with disk_faults(Path(opened.name), "weights of a job"):
                await asyncio.to_thread(_write, opened, digest, block)
        if header is None or num_bytes != header.size_bytes:
            accepted = "a safetensors file as long as its header says"
            raise Refused(WeightsRefused, accepted, value=f"{num_bytes} bytes")
        with disk_faults(Path(opened.name), "weights of a job"):
            await asyncio.to_thread(_sync, opened)
        return ReceivedWeights(header=header, sha256=digest.hexdigest(), etag=None)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function on one of the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


async def _join(blocks: AsyncIterator[bytes]) -> bytes:
    found = bytearray()
    async for block in blocks:
        found += block
    return bytes(found)


def _write(opened: BinaryIO, digest: "hashlib._Hash", block: bytes) -> None:
    opened.write(block)
    digest.update(block)


def _sync(opened: BinaryIO) -> None:
    opened.flush()
    os.fsync(opened.fileno())


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is removed if the block fails."""
    with ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        with disk_faults(path, "weights of a job"):
            opened = path.open("wb")
        undo.callback(opened.close)
        yield opened
        with disk_faults(path, "weights of a job"):
            opened.close()
        undo.pop_all()
