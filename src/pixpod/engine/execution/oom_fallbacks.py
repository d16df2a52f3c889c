"""Ways to go on when a batch does not fit into the device's memory, tried one after the other.

Knows no tensor: attempts and fallbacks are given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """`apply` frees memory and returns false if there was nothing to free.

    `warning` tells the caller what that means for the images, None if it means nothing.
    """

    apply: Callable[[], bool]
    warning: str | None = None


class DoesNotFit(Exception):
    """A batch does not fit although each fallback was applied."""


def run_within_memory(
    chunks: Sequence[Sequence[T]],
    attempt: Callable[[Sequence[T]], bool],
    *,
    first: Sequence[Fallback],
    last: Sequence[Fallback],
) -> tuple[str, ...]:
    """Process all chunks in order, and return the warnings of the fallbacks that were needed.

    `attempt` processes rows; false if they did not fit, with nothing left in memory then.
    Fallbacks of `first` are applied before a batch is halved, those of `last` when single rows do
    not fit either. Raises DoesNotFit.
    """
    warnings: list[str] = []
    pending = list(chunks)
    first, last = list(first), list(last)
    while pending:
        if attempt(pending[0]):
            pending.pop(0)
        elif first:
            _apply(first.pop(0), warnings)
        elif len(pending[0]) > 1:
            half = len(pending[0]) // 2
            pending[:1] = [pending[0][:half], pending[0][half:]]
            warnings.append("the device's memory was short: the batch was halved")
        elif last:
            _apply(last.pop(0), warnings)
        else:
            raise DoesNotFit
    return tuple(dict.fromkeys(warnings))


def _apply(fallback: Fallback, warnings: list[str]) -> None:
    if fallback.apply() and fallback.warning:
        warnings.append(fallback.warning)
