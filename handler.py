"""RunPod's entry: a worker on the platform, or one job at your desk with `--test_input`."""

import argparse
import faulthandler
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from pixpod.bootstrap import build_worker
from pixpod.engine.loading.loader import HostFaultListener
from pixpod.errors import WorkerError
from pixpod.logs import configure_logging, keep_masked, masked
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
from pixpod.serving.local_run import USAGE, failure, read_test_input, run_job
from pixpod.serving.refusing_worker import RefusingWorker
from pixpod.serving.worker import Platform, Worker
from pixpod.settings import Settings, keep_hub_offline, keep_sdk_quiet, secrets_in
from pixpod.timeline import BootTimeline, Span, since_process_start


def main() -> int:
    """Exit status: 0, or 1 for a local job that failed or was not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other flags are those of RunPod's SDK.", allow_abbrev=False
    )
    parser.add_argument("--test_input", metavar="JSON|@FILE", help="run this job, then exit")
    parser.add_argument("--rp_serve_api", action="store_true", help="the SDK's own local server")
    flags, _ = parser.parse_known_args()
    keep_sdk_quiet(os.environ)
    keep_hub_offline(os.environ)
    is_worker = flags.rp_serve_api or Settings.names_platform(os.environ)
    if is_worker and flags.test_input is None:
        return serve()
    return run_locally(flags.test_input)


def serve() -> int:
    """Be a worker until the platform ends it. Returns the exit status."""
    faulthandler.enable()  # a disk that fails under a mapped file ends the process by a signal
    sys.stdout, sys.stderr = masked(sys.stdout), masked(sys.stderr)
    timeline = BootTimeline(since_process_start())
    drain = Drain()
    platform = runpod_sdk.platform(drain)
    worker = start_worker(timeline, platform, on_host_fault=runpod_sdk.leave_host)
    return runpod_sdk.serve(worker, timeline, drain)


def start_worker(
    timeline: BootTimeline,
    platform: Platform | None = None,
    on_host_fault: HostFaultListener | None = None,
) -> Worker | RefusingWorker:
    """A worker that loads already, or one that answers each job with what is set up wrongly."""
    configure_logging("INFO")
    keep_masked(secrets_in(os.environ))
    try:
        settings = Settings.from_env(os.environ)
        configure_logging(settings.log_level)
        worker = build_worker(settings, timeline, on_host_fault, platform)
    except WorkerError as error:
        logging.getLogger(__name__).error("set up wrongly", extra={"error": str(error)})
        return RefusingWorker(error)
    timeline.add(Span(phase="start", began_s=0, ended_s=timeline.clock()))
    worker.start()
    return worker


def run_locally(given: str | None) -> int:
    """Run one job and print its outcome as the only line on standard output."""
    timeline = BootTimeline(since_process_start())
    try:
        text = read_test_input(given)
    except WorkerError as error:
        return report(failure(error))
    if text is None:
        sys.stderr.write(USAGE)
        return 1
    return report(run_job(start_worker(timeline).handle, text))


def report(outcome: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
    return 0 if outcome["status"] == "COMPLETED" else 1


if __name__ == "__main__":
    runpod_sdk.leave(main())
