"""OOM fallbacks: ways to process a batch that does not fit into the device's memory, in order.

Knows no tensor: attempts and fallbacks are arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A way to free memory: `apply` frees it, and returns False if there was nothing to free.

    `warning` informs the caller of the effect on the images; None if there is no effect.
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

    `attempt` processes rows; it returns False if they did not fit, and leaves nothing in memory.
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
