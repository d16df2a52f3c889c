"""Progress bars on standard error."""

from typing import NoReturn

from tqdm import tqdm


def byte_bar(title: str, total_bytes: int | None) -> "tqdm[NoReturn]":
    """Return a bar for so many bytes; None if the number is not known yet."""
    return tqdm(
        desc=title, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1000, mininterval=1.0
    )
