"""Renders the spool as a table, and as one line of JSON."""

import json
import time
from collections.abc import Sequence

from tabulate import tabulate

from pixpod_tools.printable import printable
from pixpod_tools.upload_spool.uploading import Row

_TITLES = ("job", "images", "MB", "since", "what", "folder")
_SIDES = ("left", "right", "right", "left", "left", "left")


def format_rows(title: str, rows: Sequence[Row]) -> str:
    """Return a table, which ends with a line end."""
    num_bytes = sum(row.size_bytes for row in rows)
    head = f"{title}: {len(rows)} jobs, {num_bytes / 1e6:.1f} MB\n"
    if not rows:
        return head
    cells = [
        (
            printable(row.job_name or "-"),
            str(row.num_images or "-"),
            f"{row.size_bytes / 1e6:.1f}",
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(row.written_at)),
            row.outcome,
            printable(row.folder),
        )
        for row in rows
    ]
    table = tabulate(cells, _TITLES, colalign=_SIDES, disable_numparse=True)
    return f"{head}\n{table}\n"


def rows_as_json(rows: Sequence[Row]) -> str:
    """Return one line without a line end. It has the keys of what was uploaded, and no links."""
    listed = [
        {
            "job": row.job_name,
            "folder": row.folder,
            "outcome": row.outcome.name.lower(),
            "keys": row.keys,
        }
        for row in rows
    ]
    return json.dumps({"jobs": listed})
