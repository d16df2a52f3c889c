"""Show what a worker did while it started, as a table and as a chart.

Reads a worker's log, or the standard error of `python handler.py --test_input ...`, and shows the
last boot in it. Other lines are ignored.

  scripts/boot_report worker.log --out boot.svg
  python handler.py --test_input @job.json 2>&1 | scripts/boot_report -
"""

import argparse
import sys
from pathlib import Path

from pixpod_tools.boot_report.report import (
    NoTimeline,
    format_boot,
    make_boot_report,
    read_log,
    until_ready,
)
from pixpod_tools.chart_path import FORMATS, chart_path


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 for a log without a boot or a file that cannot be read or written."""
    options = _parser().parse_args(arguments)
    try:
        if options.log == "-":
            spans = read_log(sys.stdin)
        else:
            with Path(options.log).open(encoding="utf-8", errors="replace") as lines:
                spans = read_log(lines)
        report = make_boot_report(until_ready(spans) if options.until_ready else spans)
        sys.stdout.write(format_boot(report))
        if options.out:
            from pixpod_tools.boot_report.chart import (
                save_boot_chart,
            )  # matplotlib only where it is needed

            save_boot_chart(report, options.out)
    except (NoTimeline, OSError) as exc:
        sys.stderr.write(f"scripts/boot_report: {exc}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/boot_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", nargs="?", default="-", metavar="LOG|-", help="default: -")
    parser.add_argument(
        "--out", type=chart_path, metavar="FILE", help=f"also a chart: {', '.join(FORMATS)}"
    )
    parser.add_argument("--until-ready", action="store_true", help="leave out the first image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
