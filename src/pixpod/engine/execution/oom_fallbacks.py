"""What is tried when a batch does not fit into the device's memory, one rung after the other.

Knows no tensor: what an attempt is, and what each rung does, is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")
Image = TypeVar("Image")

Attempt = Callable[[Sequence[Row]], list[Image] | None]
"""The images of these rows, or None if they did not fit; leaves nothing in memory then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """`climb` makes room and returns whether there was any to make; `warning` tells the caller
    what that means for the images, and is None where it means nothing.
    """

    climb: Callable[[], bool]
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """`first` are climbed before a batch is halved, `last` when single rows do not fit either."""

    first: Sequence[Rung]
    last: Sequence[Rung]


class DoesNotFit(Exception):
    """All rungs were climbed."""


def draw_within_memory(
    batches: Sequence[Sequence[Row]], attempt: Attempt[Row, Image], ladder: Ladder
) -> tuple[list[Image], tuple[str, ...]]:
    """The images of all batches, in their order, and the warnings of the rungs that were needed.

    Raises DoesNotFit.
    """
    images: list[Image] = []
    warnings: list[str] = []
    pending = list(batches)
    first, last = list(ladder.first), list(ladder.last)
    while pending:
        drawn = attempt(pending[0])
        if drawn is not None:
            images += drawn
            pending.pop(0)
        elif first:
            _climb(first.pop(0), warnings)
        elif len(pending[0]) > 1:
            half = len(pending[0]) // 2
            pending[:1] = [pending[0][:half], pending[0][half:]]
            warnings.append("the device's memory was short: the batch was halved")
        elif last:
            _climb(last.pop(0), warnings)
        else:
            raise DoesNotFit
    return images, tuple(dict.fromkeys(warnings))


def _climb(rung: Rung, warnings: list[str]) -> None:
    if rung.climb() and rung.warning:
        warnings.append(rung.warning)
