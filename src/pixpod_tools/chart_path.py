"""Parses the path of a chart, as a command's argument."""

import argparse
from pathlib import Path

FORMATS = (".svg", ".png", ".pdf")


def chart_path(text: str) -> Path:
    """Parse a path. Raises argparse.ArgumentTypeError unless its ending is that of a format."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(
            f"expected a path that ends in {', '.join(FORMATS)}, got {text}"
        )
    return path
