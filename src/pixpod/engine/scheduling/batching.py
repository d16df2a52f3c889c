"""Decides which requests run together. Values only: no tensor, no thread, no clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pixpod.families import FamilySpec
from pixpod.job import GenerationRequest, ImageResult, Quality, RawImage
from pixpod.methods import BatchKey, num_tokens

BUCKETS = (8, 4, 2, 1)
"""Sizes that a batch may have: few, so that compiling and capturing are soon complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """One request's images of a batch. `warms` names what a warm-up is of, None for others."""

    request: GenerationRequest
    seeds: tuple[int, ...]
    warms: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """Images of an item. `device_ms` is its own share of the time that the batch took.

    `controls` are its control images, given or made.
    """

    images: tuple[ImageResult, ...]
    timings_ms: dict[str, float]
    device_ms: float
    warnings: tuple[str, ...]
    controls: tuple[RawImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    """A request that waits for `num_images` more images."""

    request_id: int
    key: BatchKey
    num_images: int
    is_isolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The number of images in a batch that belong to one request."""

    request_id: int
    num_images: int


MaxBatchSize = Callable[[BatchKey], int]
"""Returns the largest batch that the device takes with this key; at least 1."""


def is_isolated(request: GenerationRequest) -> bool:
    """Return whether each image has a batch of its own.

    Isolated requests require it, and so does step caching, which skips calls of a whole batch.
    """
    return request.isolated or request.quality is Quality.TURBO


def max_batch_size(family: FamilySpec, key: BatchKey) -> int:
    """Return the largest bucket within the family's tokens, or 1 if a single image exceeds them."""
    return bucket(max(1, family.batch_tokens // max(1, num_tokens(key))))


def bucket(num_images: int) -> int:
    """Return the largest of BUCKETS that is not above `num_images`, which is at least 1."""
    return next(size for size in BUCKETS if size <= num_images)


class FairQueue:
    """Picks the next group: of those that wait, the one that has used the device least.

    Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): a new group begins with the virtual
    time of the others, so that its past idle time gives it no advantage and no disadvantage.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._served: dict[BatchKey, float] = {}

    def first(self, groups: Sequence[BatchKey]) -> BatchKey:
        """Return the group that is next; of equal ones the one named first."""
        chosen = min(groups, key=lambda group: self._served.get(group, self._now))
        self._now = max(self._now, self._served.get(chosen, self._now))
        return chosen

    def charge(self, group: BatchKey, seconds: float) -> None:
        """Add to the time for which a group has used the device."""
        self._served[group] = max(self._now, self._served.get(group, self._now)) + seconds
        self._served = {key: had for key, had in self._served.items() if had > self._now}


def choose_batch(
    queued: Sequence[QueuedRequest], fair_queue: FairQueue, max_size: MaxBatchSize
) -> tuple[Allocation, ...]:
    """Return the next batch, from requests in order of arrival; empty only if none waits.

    It is the largest bucket that the waiting images and the limit allow; no request waits for
    more to come.
    """
    if not queued:
        return ()
    group = fair_queue.first([entry.key for entry in queued])
    peers = [entry for entry in queued if entry.key == group]
    if peers[0].is_isolated:
        return (Allocation(request_id=peers[0].request_id, num_images=1),)
    peers = [entry for entry in peers if not entry.is_isolated]
    left = bucket(min(sum(entry.num_images for entry in peers), max_size(group)))
    allocations = []
    for entry in peers:
        if taken := min(entry.num_images, left):
            allocations.append(Allocation(request_id=entry.request_id, num_images=taken))
            left -= taken
    return tuple(allocations)
