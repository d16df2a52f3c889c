"""RunPod's entry: a worker on the platform, or one job at your desk with `--test_input`."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from pixpod.bootstrap import build_worker
from pixpod.errors import WorkerError
from pixpod.local_run import USAGE, failure, read_test_input, run_job
from pixpod.logs import configure_logging
from pixpod.runpod_sdk import serve
from pixpod.settings import Settings, keep_sdk_quiet
from pixpod.worker import Handler, refuse_all


def main() -> int:
    """Exit status: 0, or 1 for a local job that failed or was not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other flags are those of RunPod's SDK.", allow_abbrev=False
    )
    parser.add_argument("--test_input", metavar="JSON|@FILE", help="run this job, then exit")
    parser.add_argument("--rp_serve_api", action="store_true", help="the SDK's own local server")
    flags, _ = parser.parse_known_args()
    keep_sdk_quiet(os.environ)
    is_worker = flags.rp_serve_api or Settings.names_platform(os.environ)
    if is_worker and flags.test_input is None:
        serve(build_handler())
        return 0
    return run_locally(flags.test_input)


def build_handler() -> Handler:
    """A started worker's handler, or one that answers each job with what is set up wrongly."""
    configure_logging("INFO")
    try:
        settings = Settings.from_env(os.environ)
        configure_logging(settings.log_level)
        worker = build_worker(settings)
    except WorkerError as error:
        logging.getLogger(__name__).error("set up wrongly", extra={"error": str(error)})
        return refuse_all(error)
    worker.start()
    return worker.handle


def run_locally(given: str | None) -> int:
    """Run one job and print its outcome as the only line on standard output."""
    try:
        text = read_test_input(given)
    except WorkerError as error:
        return report(failure(error))
    if text is None:
        sys.stderr.write(USAGE)
        return 1
    return report(run_job(build_handler(), text))


def report(outcome: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(outcome) + "\n")
    return 0 if outcome["status"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
