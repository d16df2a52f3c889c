"""A picture's file, as a command's argument."""

import argparse
from pathlib import Path

FORMATS = (".svg", ".png", ".pdf")


def picture(text: str) -> Path:
    """Raises argparse.ArgumentTypeError for an ending that no picture has."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: accepted endings are {', '.join(FORMATS)}")
    return path
