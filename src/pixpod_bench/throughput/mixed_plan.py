"""Which sides are measured with mixed jobs, and which are compared. Values only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pixpod_bench.throughput.figures import Ratio

Item = TypeVar("Item")

PLAIN, OFF, ON = "plain worker", "ours, batching off", "ours, batching on"
ALONE = {False: "engine alone, batching off", True: "engine alone, batching on"}
"""By whether it batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Who is measured, and how many jobs a worker holds; 0 is an engine without the SDK, which
    has all of them at once.
    """

    who: str
    held: int

    @property
    def name(self) -> str:
        return f"{self.who}, {self.held} held" if self.held else self.who


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two sides whose images per second are compared, and what their ratio tells."""

    title: str
    above: Side
    below: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Images per second of `above` over those of `below`, round by round."""

    title: str
    above: str
    below: str
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Each side draws `warm_ups` other jobs before. A plan that is not `whole` rehearses two
    sides.
    """

    jobs: int
    held: int
    rounds: int
    warm_ups: int
    is_whole: bool = True

    def sides(self) -> tuple[Side, ...]:
        if not self.is_whole:
            return tuple(Side(who=who, held=self.held) for who in (PLAIN, ON))
        workers = (Side(who=who, held=n) for n in (1, self.held) for who in (PLAIN, OFF, ON))
        return (*workers, *(Side(who=who, held=0) for who in ALONE.values()))

    def pairs(self) -> tuple[Pair, ...]:
        """Only those of which both sides are measured."""
        plain, off, on = (Side(who=who, held=self.held) for who in (PLAIN, OFF, ON))
        plain_1, off_1, on_1 = (Side(who=who, held=1) for who in (PLAIN, OFF, ON))
        alone = {is_on: Side(who=who, held=0) for is_on, who in ALONE.items()}
        listed = (
            ("ours over plain, 1 held", on_1, plain_1),
            (f"ours over plain, {self.held} held", on, plain),
            (f"ours over plain, {self.held} held, neither batches", off, plain),
            (f"fetch-ahead alone, ours: {self.held} held over 1", off, off_1),
            (f"fetch-ahead alone, plain: {self.held} held over 1", plain, plain_1),
            ("batching alone, through the SDK", on, off),
            ("batching alone, engine without SDK", alone[True], alone[False]),
            (f"ours with {self.held} held over plain with 1", on, plain_1),
            ("ours through the SDK over the engine alone", on, alone[True]),
        )
        there = self.sides()
        return tuple(
            Pair(title=title, above=above, below=below)
            for title, above, below in listed
            if above in there and below in there
        )

    def slice_of(self, items: Sequence[Item], number: int) -> Sequence[Item]:
        """What each side is given in one of the rounds; all rounds together are all, in order."""
        first, last = (len(items) * each // self.rounds for each in (number, number + 1))
        return items[first:last]
