"""Write all generated documents below the current directory, a checkout of the repository.

With `--check`, write nothing, and end with status 1 if a document is not up to date.
"""

import argparse
import sys
from pathlib import Path

from pixpod_tools.generate.pages import PAGES


def main(argv: list[str] | None = None, root: Path = Path()) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    is_check = parser.parse_args(argv).check
    stale = 0
    for name, render in PAGES.items():
        path, text = root / name, render()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not is_check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{name}{' is not up to date' if is_check else ''}\n")
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
