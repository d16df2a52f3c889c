"""RunPod's entry: a worker on the platform, or one job at your desk with `--test_input`."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from pixpod import local_run
from pixpod.bootstrap import build_worker
from pixpod.errors import WorkerError
from pixpod.logs import configure_logging
from pixpod.runpod_sdk import serve
from pixpod.settings import Settings, keep_sdk_quiet
from pixpod.worker import Handler, refuse_all


def build_handler() -> Handler:
    """A started worker's handler, or one that answers each job with what is set up wrongly."""
    try:
        settings = Settings.from_env(os.environ)
        configure_logging(settings.log_level)
        worker = build_worker(settings)
    except WorkerError as error:
        return refuse_all(error)
    worker.start()
    return worker.handle


def main() -> int:
    """Exit status: 0, or 1 for a local job that failed or was not given."""
    keep_sdk_quiet(os.environ)
    configure_logging("INFO")
    is_local = not ({"RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT"} & os.environ.keys())
    wants_server = "--rp_serve_api" in sys.argv
    test_input = local_run.find_test_input(sys.argv[1:])
    if test_input is None and is_local and not wants_server:
        sys.stderr.write(local_run.USAGE + "\n")
        return 1
    handler = build_handler()
    if test_input is None or wants_server:
        serve(handler)
        return 0
    outcome = local_run.run_job(handler, test_input)
    sys.stdout.write(json.dumps(outcome, ensure_ascii=False) + "\n")
    return 0 if outcome["status"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
