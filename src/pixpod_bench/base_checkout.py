"""Finds another checkout of this repository, which benchmarks run beside this one."""

import argparse
from pathlib import Path


def find_checkout(text: str) -> Path:
    """Return the root of a checkout. Raises ArgumentTypeError for another folder."""
    root = Path(text).resolve()
    if not (root / "handler.py").is_file() or not (root / "src" / "pixpod").is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a checkout with handler.py and src/pixpod, got {text}"
        )
    return root
