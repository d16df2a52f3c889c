"""Send dead letters again: the ends of jobs that their receivers have not got.

Run it with the worker's variables: PIXPOD_WEBHOOK_SECRETS, those of the bucket or
PIXPOD_OUTPUT_DIR, and PIXPOD_ALLOW_TARGETS. Letters that are delivered are deleted.

  scripts/redeliver --dry-run
  scripts/redeliver --prefix shop/2026-11
  scripts/redeliver --job 1a2b-e1 --job 3c4d-e1

Exit status: 0 if no letter is left, 1 if some are, 2 if the letters cannot be listed.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from tabulate import tabulate
from tqdm import tqdm

from pixpod.errors import InvalidSettings
from pixpod.inputs.client import GuardedClient
from pixpod.serving.webhooks import Webhooks
from pixpod.settings import Settings
from pixpod_tools.printable import printable
from pixpod_tools.redeliver.files import FilesError, LetterFiles, open_files
from pixpod_tools.redeliver.redelivery import Outcome, Redelivery

TITLES = ("host", "path", "job", "event", "outcome")


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_env(os.environ)
        if not settings.webhook_secrets:
            raise InvalidSettings("PIXPOD_WEBHOOK_SECRETS: expected those of the worker, got none")
        files = open_files(settings)
        keys = _list(files, _prefix(settings, options.prefix))
    except (InvalidSettings, FilesError) as exc:
        sys.stderr.write(f"scripts/redeliver: {exc}\n")
        return 2
    outcomes = asyncio.run(_redeliver(settings, files, keys, options))
    sys.stdout.write(format_outcomes(outcomes))
    return 1 if any(each.is_left for each in outcomes) else 0


async def _redeliver(
    settings: Settings, files: LetterFiles, keys: list[str], options: argparse.Namespace
) -> list[Outcome]:
    webhooks = Webhooks(
        client=GuardedClient(settings.targets, retry_waits_s=()), secrets=settings.webhook_secrets
    )
    redelivery = Redelivery(
        files=files,
        webhooks=webhooks,
        targets=settings.targets,
        jobs=frozenset(options.job),
        is_dry=options.dry_run,
    )
    try:
        with tqdm(total=len(keys), desc="letters", unit="letter", disable=not keys) as bar:
            return await redelivery.run(keys, bar.update)
    finally:
        await webhooks.close()


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Return a table of letters and a line that counts them."""
    rows = [
        [printable(each) for each in (one.host, one.path, one.job_id, one.event, one.text)]
        for one in outcomes
    ]
    table = tabulate(rows, TITLES, disable_numparse=True) + "\n\n" if rows else ""
    num_left = sum(each.is_left for each in outcomes)
    return f"{table}{len(outcomes) - num_left} delivered, {num_left} left\n"


def _list(files: LetterFiles, prefix: str) -> list[str]:
    return sorted(tqdm(files.keys(prefix), desc="listing", unit="letter"))


def _prefix(settings: Settings, given: str) -> str:
    base = settings.s3.prefix if settings.s3 else ""
    return f"{base}/{given}" if base else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/redeliver",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--prefix",
        default="",
        metavar="TEXT",
        help="only keys that begin with this, after PIXPOD_S3_PREFIX",
    )
    parser.add_argument(
        "--job", action="append", default=[], metavar="ID", help="only letters of this job"
    )
    parser.add_argument("--dry-run", action="store_true", help="send and delete nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
