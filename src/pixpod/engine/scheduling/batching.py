"""Which requests run together. POLICY: values only; knows no tensor, no thread and no clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pixpod.catalog import Family
from pixpod.job import GenerationRequest, Quality

BUCKETS = (8, 4, 2, 1)
"""Rows that a batch may have: few, so that what is compiled or captured is soon complete."""

TOKEN_BUDGET: Mapping[Family, int] = {Family.FLUX: 4608, Family.SDXL: 32768, Family.SD15: 8192}
"""Tokens of a batch that fill a Hopper card; more of them take as much longer as they are more.

FLUX is full with one image of 1024 px (4096 and 512 of text): four of them took 2.860 s each
instead of 2.966 s, while 512 px gain about three times (diffusers-torchao's table for an H100,
sglang's for an H200). UNets run at a third of the card's arithmetic alone, and about twice that in
batches (MLPerf 4.1): eight images of 1024 px for SDXL, of 512 px for SD 1.5.
"""

PIXELS_PER_TOKEN = 256
"""VAE stride 8 and patches of 2, both squared; UNets are counted alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """What rows of a batch must have in common: all that shapes or scales the denoiser's call.

    Prompts and seeds differ freely.
    """

    model: str
    quality: Quality
    width: int
    height: int
    max_sequence_length: int | None
    num_inference_steps: int
    scheduler: str
    guidance_scale: float | None
    true_cfg_scale: float | None

    @classmethod
    def of(cls, request: GenerationRequest) -> "GroupKey":
        return cls(
            model=request.model,
            quality=request.quality,
            width=request.width,
            height=request.height,
            max_sequence_length=request.max_sequence_length,
            num_inference_steps=request.num_inference_steps,
            scheduler=request.scheduler,
            guidance_scale=request.guidance_scale,
            true_cfg_scale=request.true_cfg_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A request in the queue, of which `num_rows` images are not drawn yet."""

    ticket: int
    key: GroupKey
    num_rows: int
    runs_alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of a batch's rows are one request's."""

    ticket: int
    num_rows: int


RowLimit = Callable[[GroupKey], int]
"""The most rows of a kind that the device takes at once; at least 1."""


def runs_alone(request: GenerationRequest) -> bool:
    """Whether each image has a batch of its own: `deterministic` promises the same bytes whoever
    else is served, and step caching decides for a whole batch what it leaves out.
    """
    return request.deterministic or request.quality is Quality.TURBO


def most_rows(family: Family, key: GroupKey) -> int:
    """As many as the token budget holds, or 1 where a single image is more than that."""
    tokens = key.width * key.height // PIXELS_PER_TOKEN + (key.max_sequence_length or 0)
    return bucket(max(1, TOKEN_BUDGET[family] // max(1, tokens)))


def bucket(num_rows: int) -> int:
    """The largest of BUCKETS that is not above `num_rows`, which is at least 1."""
    return next(size for size in BUCKETS if size <= num_rows)


class Turns:
    """Whose turn it is: of the groups that wait, the one that has had least of the device.

    Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): a group that comes anew begins
    where the others are, so that it can neither claim the past nor be made to wait for it.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._had: dict[GroupKey, float] = {}

    def first(self, groups: Sequence[GroupKey]) -> GroupKey:
        """One of these; of equals the one named first."""
        chosen = min(groups, key=lambda group: self._had.get(group, self._now))
        self._now = max(self._now, self._had.get(chosen, self._now))
        return chosen

    def charge(self, group: GroupKey, seconds: float) -> None:
        """The group has had the device for so long."""
        self._had[group] = max(self._now, self._had.get(group, self._now)) + seconds
        self._had = {key: had for key, had in self._had.items() if had > self._now}


def choose_batch(
    waiting: Sequence[Waiting], turns: Turns, row_limit: RowLimit
) -> tuple[Share, ...]:
    """The next batch of those that wait, in order of arrival: never empty if anybody waits.

    It is as large a bucket as waiting rows, and the limit, allow; nobody waits for more to come.
    """
    if not waiting:
        return ()
    group = turns.first([entry.key for entry in waiting])
    mates = [entry for entry in waiting if entry.key == group]
    if mates[0].runs_alone:
        return (Share(ticket=mates[0].ticket, num_rows=1),)
    mates = [entry for entry in mates if not entry.runs_alone]
    left = bucket(min(sum(entry.num_rows for entry in mates), row_limit(group)))
    shares = []
    for entry in mates:
        if taken := min(entry.num_rows, left):
            shares.append(Share(ticket=entry.ticket, num_rows=taken))
            left -= taken
    return tuple(shares)
