"""Lets benchmarks run another checkout of this repository beside this one, whatever its layout.

To be deleted with the comparison of both layouts.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

RENAMED = {"MAX_CONCURRENCY": "MAX_HELD_JOBS", "REFRESH_AFTER_IMAGES": "RENEW_AFTER_IMAGES"}
"""Settings by their new names, without the prefix."""


def environ_for(root: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables under the names that the checkout at `root` reads."""
    source = "".join(
        path.read_text(encoding="utf-8") for path in sorted((root / "src" / "pixpod").glob("*.py"))
    )
    found = dict(environ)
    for new, old in RENAMED.items():
        names = f"PIXPOD_{new}", f"PIXPOD_{old}"
        for name in names:
            if name in found:
                value = found.pop(name)
                found[names[0] if names[0] in source else names[1]] = value
                break
    return found


def find_checkout(text: str) -> Path:
    """Return the root of a checkout. Raises ArgumentTypeError for another folder."""
    root = Path(text).resolve()
    if not (root / "handler.py").is_file() or not (root / "src" / "pixpod").is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a checkout with handler.py and src/pixpod, got {text}"
        )
    return root
