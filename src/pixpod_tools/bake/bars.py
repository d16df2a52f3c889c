"""Progress bars on standard error."""

from contextlib import AbstractContextManager
from typing import Protocol

from tqdm import tqdm


class Bar(Protocol):
    """A progress bar. `total` may be told later."""

    total: float | None

    def update(self, n: int) -> object:
        """So many bytes more are done; from any thread."""
        ...


class Bars(Protocol):
    """Opens a bar of a title for so many bytes; None where that is not known yet."""

    def __call__(self, title: str, total_bytes: int | None) -> AbstractContextManager[Bar]: ...


def byte_bar(title: str, total_bytes: int | None) -> AbstractContextManager[Bar]:
    return tqdm(
        desc=title, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1000, mininterval=1.0
    )
