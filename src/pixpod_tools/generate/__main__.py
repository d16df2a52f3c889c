"""Write all generated documents below the current directory, a checkout of the repository."""

import sys
from pathlib import Path

from pixpod_tools.generate.pages import PAGES


def main() -> None:
    for name, render in PAGES.items():
        Path(name).write_text(render(), encoding="utf-8")
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
