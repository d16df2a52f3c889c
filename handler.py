"""RunPod's entry: a worker on the platform, or one job at your desk with `--test_input`."""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from pixpod.bootstrap import build_worker
from pixpod.errors import WorkerError
from pixpod.local_run import USAGE, read_test_input, run_job
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
        return refuse_all(error)
    worker.start()
    return worker.handle


def run_locally(given: str | None) -> int:
    text = read_test_input(given)
    if text is None:
        sys.stderr.write(USAGE)
        return 1
    outcome = run_job(build_handler(), text)
    sys.stdout.write(json.dumps(outcome, ensure_ascii=False) + "\n")
    return 0 if outcome["status"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
