"""Keeps LoRA files of callers on this disk, under the hash of their bytes and never their URL.

A file that is there is complete: it gets its name once it is synced. Whoever reads it checks its
hash. Not for several event loops at once.
"""

import asyncio
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pixpod.errors import WeightsRefused
from pixpod.inputs.intake import Intake
from pixpod.inputs.lora_names import check_names
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Target
from pixpod.weights.disk import disk_faults, rename_durably

MAX_REMEMBERED_URLS = 10_000

_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """A file in the cache. `is_cached`: it was there before it was asked for."""

    path: Path
    sha256: str
    is_cached: bool


class LoraCache:
    """A directory of files that drops the least recently used ones beyond `max_bytes`.

    Files in use are never dropped; a file that is too large is kept as long as it is used.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] | None = None
        self._users: Counter[str] = Counter()
        self._etags: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._fetches: dict[str, _Fetch] = {}

    @contextmanager
    def using(self) -> Iterator["LoraUse"]:
        """Keep the files that are got by the yielded object until the block ends."""
        use = LoraUse(self)
        try:
            yield use
        finally:
            self._users.subtract(use.hashes)
            self._users += Counter()  # drops files with a count of zero
            self._drop_oldest()

    async def get(
        self, target: Target, sha256: str | None, intake: Intake, use: "LoraUse"
    ) -> CachedFile:
        """Return the file of a URL, fetched if need be; with its hash given, not if it is here.

        Raises Refused, also if the file has another hash, and the errors of `disk_faults`.
        """
        sizes = self._open()
        if sha256 is not None and sha256 in sizes:
            return self._take(sha256, use, is_cached=True)
        sha256_found, is_cached = await self._fetch_once(target, intake, use)
        if sha256 is not None and sha256_found != sha256:
            accepted = "the file whose hash is given"
            raise Refused(WeightsRefused, accepted, value=f"one of {sha256_found}")
        return self._take(sha256_found, use, is_cached=is_cached)

    def _take(self, sha256: str, use: "LoraUse", *, is_cached: bool) -> CachedFile:
        use.hold(sha256, self._users)
        self._open().move_to_end(sha256)
        return CachedFile(path=self._path(sha256), sha256=sha256, is_cached=is_cached)

    async def _fetch_once(self, target: Target, intake: Intake, use: "LoraUse") -> tuple[str, bool]:
        """Return the hash, and whether the file was here; concurrent fetches happen once."""
        fetch = self._fetches.get(target.url)
        if fetch is None:
            fetch = self._fetches[target.url] = _Fetch(
                asyncio.create_task(self._fetch(target, intake))
            )
            fetch.task.add_done_callback(lambda task: self._fetches.pop(target.url, None))
        fetch.num_waiting += 1
        try:
            sha256, is_cached = await asyncio.shield(fetch.task)
            use.hold(sha256, self._users)
            return sha256, is_cached
        finally:
            fetch.num_waiting -= 1
            if not fetch.num_waiting:
                self._end(fetch)

    def _end(self, fetch: "_Fetch") -> None:
        """End a fetch that nobody waits for, and its own use of the file."""
        if not fetch.task.cancel() and not fetch.task.exception():
            self._users[fetch.task.result()[0]] -= 1

    async def _fetch(self, target: Target, intake: Intake) -> tuple[str, bool]:
        """Return the hash of a file, which is in use until `_end`, and whether it was here."""
        etag, known = self._etags.get(target.url, (None, ""))
        sizes = self._open()
        if known not in sizes:
            etag = None
        self._users[known] += 1  # until its ETag is compared
        draft = self._directory / f"{uuid.uuid4().hex}.part"
        try:
            received = await intake.read_weights(target, draft, etag)
            if received is None:
                self._users[known] += 1
                return known, True
            check_names(received.header.shapes)
            await asyncio.to_thread(self._name, draft, received.sha256)
        finally:
            draft.unlink(missing_ok=True)
            self._users[known] -= 1
        self._users[received.sha256] += 1
        is_cached = received.sha256 in sizes
        sizes[received.sha256] = received.header.size_bytes
        if received.etag is not None:
            self._etags[target.url] = (received.etag, received.sha256)
            self._etags.move_to_end(target.url)
            if len(self._etags) > MAX_REMEMBERED_URLS:
                self._etags.popitem(last=False)
        return received.sha256, is_cached

    def _name(self, draft: Path, sha256: str) -> None:
        with disk_faults(self._directory, "weights of a job"):
            rename_durably(draft, self._path(sha256))

    def _open(self) -> OrderedDict[str, int]:
        """Return the sizes of the files by their hashes, the one used longest ago first."""
        if self._sizes is None:
            with disk_faults(self._directory, "weights of jobs"):
                self._directory.mkdir(parents=True, exist_ok=True)
                for draft in self._directory.glob("*.part"):
                    draft.unlink(missing_ok=True)
                found = [(path, path.stat()) for path in self._directory.glob(f"*{_SUFFIX}")]
            found.sort(key=lambda each: each[1].st_atime)
            self._sizes = OrderedDict((path.stem, stat.st_size) for path, stat in found)
        missing = [sha256 for sha256 in self._sizes if not self._path(sha256).exists()]
        for sha256 in missing:
            del self._sizes[sha256]
        return self._sizes

    def _drop_oldest(self) -> None:
        if self._sizes is None:
            return
        total = sum(self._sizes.values())
        for sha256 in list(self._sizes):
            if total <= self._max_bytes:
                break
            if not self._users[sha256]:
                total -= self._sizes.pop(sha256)
                self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._directory / f"{sha256}{_SUFFIX}"


class LoraUse:
    """The files that a job uses, each once."""

    def __init__(self, cache: LoraCache) -> None:
        self.cache = cache
        self.hashes: set[str] = set()

    def hold(self, sha256: str, users: Counter[str]) -> None:
        if sha256 not in self.hashes:
            self.hashes.add(sha256)
            users[sha256] += 1


@dataclass(slots=True)
class _Fetch:
    """A fetch in progress, which is cancelled once nobody waits for it."""

    task: "asyncio.Task[tuple[str, bool]]"
    num_waiting: int = 0
