"""Upload the images of the spool to the deployment's bucket, and delete them from the spool.

The spool has images that no place has taken. Run this where the workers' network volume is mounted,
with the variables that the workers have: the bucket, PIXPOD_KEY_SECRET, PIXPOD_SPOOL_DIR.

  scripts/upload_spool --dry-run
  scripts/upload_spool --dir /workspace/pixpod-spool

A job that comes again is then answered from the bucket. What cannot or must not be uploaded stays
in the spool; delete its folder to give it up. The last line is JSON.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixpod.bootstrap import spool_directory
from pixpod.errors import InvalidSettings, WorkerError
from pixpod.outputs.spool import Spool
from pixpod.settings import Settings
from pixpod_tools.bake.bars import byte_bar
from pixpod_tools.upload_spool.report import format_rows, rows_as_json
from pixpod_tools.upload_spool.uploading import Outcome, Row, Uploader, list_spool, upload_all


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Return 0, or 1 if something could not be uploaded."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_env(environ)
        spool = _open_spool(settings, options.dir)
        rows = list_spool(spool)
        error = None
        if not options.dry_run:
            rows, error = _upload(rows, spool, settings)
    except (WorkerError, OSError) as exc:
        return _complain(exc)
    sys.stdout.write(format_rows(str(spool.folder), rows) + rows_as_json(rows) + "\n")
    if error is not None:
        _complain(error)
        sys.stderr.write("What was not uploaded is still there: correct this and run it again.\n")
    return int(any(row.outcome.is_fault for row in rows))


def _upload(
    rows: list[Row], spool: Spool, settings: Settings
) -> tuple[list[Row], WorkerError | None]:
    if settings.s3 is None:
        raise InvalidSettings(
            "PIXPOD_S3_BUCKET: expected the bucket that the workers have, got none; --dry-run "
            "needs none"
        )
    from pixpod.outputs.s3_storage import S3ImageStore  # boto3 only where it is needed

    uploader = Uploader(
        spool=spool,
        store=S3ImageStore(settings.s3),
        key_prefix=settings.s3.prefix,
        secret=settings.key_secret,
    )
    total = sum(row.size_bytes for row in rows if row.outcome is Outcome.WAITING)
    with byte_bar("upload", total) as bar:
        return asyncio.run(upload_all(rows, uploader, bar.update))


def _open_spool(settings: Settings, given: Path | None) -> Spool:
    """Return the spool of a deployment. Raises InvalidSettings if there is none."""
    directory = given or spool_directory(settings)
    if directory is None:
        raise InvalidSettings(
            "PIXPOD_SPOOL_DIR: expected the directory of the spool, or --dir, got neither"
        )
    if not directory.is_dir():
        raise InvalidSettings(f"expected the directory of the spool, got {str(directory)!r}")
    if not settings.key_secret.get_secret_value():
        raise InvalidSettings(
            "PIXPOD_KEY_SECRET: expected the secret that the workers have, or the credentials of "
            "their bucket, got neither"
        )
    spool = Spool(directory, secret=settings.key_secret, max_bytes=settings.spool_max_bytes)
    others = [path for path in directory.iterdir() if path != spool.folder]
    if others and not spool.folder.is_dir():
        raise InvalidSettings(
            f"{directory}: its {len(others)} folders are of other deployments: expected one of "
            "this PIXPOD_KEY_SECRET, or of this bucket's secret key, got none"
        )
    return spool


def _complain(error: Exception) -> int:
    sys.stderr.write(f"scripts/upload_spool: {error}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/upload_spool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="default: PIXPOD_SPOOL_DIR, else the volume's"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what is there, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
