"""Uses RunPod's SDK, which is imported when it is needed: that takes most of a second.

Each use of something that the SDK does not document has a test that fails when it changes.
"""

import asyncio
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import NoReturn

from pixpod.engine.device_probe import processor_name
from pixpod.errors import WorkerError
from pixpod.serving.draining import Drain
from pixpod.serving.refusing_worker import RefusingWorker
from pixpod.serving.worker import Platform, Worker
from pixpod.timeline import BootTimeline

log = logging.getLogger(__name__)

REPLACED: Mapping[str, Mapping[str, str]] = {
    "rp_http._handle_result": {
        "1.12.0": "ce88ccb812bcc41f5b9f2200aafe3c61c84a84ed7a6c939bd1034755fd564d9f",
        "2.0.0rc2": "ce88ccb812bcc41f5b9f2200aafe3c61c84a84ed7a6c939bd1034755fd564d9f",
    },
    "rp_job.get_job": {
        "1.12.0": "8ce238208ca5261ace75857c2e4386c1c09b10b4177f8d802717a299b6c82627",
        "2.0.0rc2": "8ce238208ca5261ace75857c2e4386c1c09b10b4177f8d802717a299b6c82627",
    },
    "rp_job.get_stop_signals": {
        "1.12.0": "031a55cb8506413279bd7dc01d4ef158e99a6663f1a65cf76a06e6177abdae91",
        "2.0.0rc2": "031a55cb8506413279bd7dc01d4ef158e99a6663f1a65cf76a06e6177abdae91",
    },
    "rp_scale.JobScaler": {
        "1.12.0": "b9b75d9270a3ae4fcce9b652f4f497ab87dd4c6f836d0a7f3a53039d53581b78",
        "2.0.0rc2": "b66afec7bf901a72150578d249b437acf130ff06b611d1da4ea4db16cac19e5d",
    },
}
"""Names in `runpod.serverless.modules` that `sdk_replacements` replaces or calls in another way:
the SHA-256 of the source that it was written for, by version."""

UPDATE_LIMIT_S = 5.0
"""Time limit of one progress update: the SDK would try for minutes, and the result waits for it."""


def serve(worker: Worker | RefusingWorker, timeline: BootTimeline, drain: Drain) -> int:
    """Hand jobs of the platform to `worker` until `drain` is over, which a signal begins, too.

    Returns the exit status. No job is taken if `check_host` raises: the SDK reports the worker as
    unhealthy and exits with 1. The SDK reads its environment when it is imported, so that must be
    complete before.
    """
    drain.settle = worker.settle
    with timeline.span("sdk"), _processor_name_from_proc():
        import runpod

        replace_in_sdk(drain)

    async def host() -> None:
        """Check the host. The SDK's report names the check after this function."""
        await asyncio.to_thread(worker.check_host)
        timeline.mark("taking_jobs")

    runpod.serverless.register_fitness_check(host)
    runpod.serverless.start(
        {"handler": worker.handle, "concurrency_modifier": worker.max_concurrency}
    )
    return drain.status


def replace_in_sdk(drain: Drain) -> bool:
    """Replace what loses results and jobs; returns whether this version of the SDK is known.

    An unknown one stays as it is, rather than half replaced.
    """
    from runpod.version import __version__

    if any(__version__ not in versions for versions in REPLACED.values()):
        log.warning(
            "unknown version of the SDK: it may lose results, and jobs when it is ended",
            extra={"version": __version__, "known": [*REPLACED["rp_scale.JobScaler"]]},
        )
        return False
    from pixpod.serving import sdk_replacements

    sdk_replacements.replace(drain)
    return True


def platform(drain: Drain) -> Platform:
    """Return the platform as a worker of this process sees it."""
    return Platform(
        num_taken_jobs=num_taken_jobs,
        send_progress=send_progress,
        end_worker=partial(drain.begin, status=1),
    )


def num_taken_jobs() -> int:
    """Count the jobs that the SDK has taken and not yet reported."""
    from runpod.serverless.modules.worker_state import JobsProgress

    count: int = JobsProgress().get_job_count()
    return count


async def send_progress(job_id: str, update: Mapping[str, object]) -> None:
    """Send an update as a ProgressSender does; the SDK's local test servers accept no updates.

    `runpod.serverless.progress_update` starts a thread for the same call and does not say when it
    is over, so that an update may arrive after the result.
    """
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules import rp_http
    from runpod.serverless.modules.rp_progress import _async_progress_update

    if not rp_http.JOB_DONE_URL_TEMPLATE.startswith("http"):
        return
    try:
        async with asyncio.timeout(UPDATE_LIMIT_S), AsyncClientSession() as session:
            await _async_progress_update(session, {"id": job_id}, dict(update))
    except TimeoutError:
        log.warning("the platform did not take an update in time")


def leave_host(error: WorkerError) -> NoReturn:
    """Report this host as unhealthy and end the process at once, its jobs unanswered.

    The platform gives them to another worker; an answer would make them fail for good.
    """
    from runpod.serverless.modules import rp_fitness

    rp_fitness._report_unhealthy("host", str(error))
    leave(1)


def leave(status: int) -> NoReturn:
    """End the process at once: an interpreter that has torch takes most of a second to shut down,
    and would wait for threads that still import or load.

    Ends the SDK's ping process first, which would otherwise go on to report this worker's jobs.
    """
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    os._exit(status)


@contextmanager
def _processor_name_from_proc() -> Iterator[None]:
    """Replace the package cpuinfo in the block, in which the SDK is imported and reads one name of
    it: that takes more than a second, because cpuinfo tries the methods of all systems.
    """
    stand_in = ModuleType("cpuinfo")
    stand_in.get_cpu_info = lambda: {"brand_raw": processor_name() or "unknown"}  # type: ignore[attr-defined]
    before = sys.modules.get("cpuinfo")
    sys.modules["cpuinfo"] = before or stand_in
    try:
        yield
    finally:
        if before is None:
            del sys.modules["cpuinfo"]
