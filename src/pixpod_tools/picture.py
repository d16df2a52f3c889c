"""Parses the path of a chart, as a command's argument."""

import argparse
from pathlib import Path

FORMATS = (".svg", ".png", ".pdf")


def picture(text: str) -> Path:
    """Parse a path. Raises argparse.ArgumentTypeError unless its ending is that of a format."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: accepted endings are {', '.join(FORMATS)}")
    return path
