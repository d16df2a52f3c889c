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
from types import ModuleType
from typing import NoReturn

from pixpod.engine.device_probe import processor_name
from pixpod.errors import WorkerError
from pixpod.serving.worker import RefusingWorker, Worker
from pixpod.timeline import BootTimeline

log = logging.getLogger(__name__)

UPDATE_LIMIT_S = 5.0
"""Time limit of one progress update: the SDK would try for minutes, and the result waits for it."""


def serve(worker: Worker | RefusingWorker, timeline: BootTimeline) -> None:
    """Hand jobs of the platform to `worker` until the platform ends it.

    No job is taken if `check_host` raises: the SDK reports the worker as unhealthy and exits
    with 1. The SDK reads its environment when it is imported, so that must be complete before.
    """
    with timeline.span("sdk"), _processor_name_from_proc():
        import runpod

    async def host() -> None:
        """Check the host. The SDK's report names the check after this function."""
        await asyncio.to_thread(worker.check_host)
        timeline.mark("taking_jobs")

    runpod.serverless.register_fitness_check(host)
    runpod.serverless.start(
        {"handler": worker.handle, "concurrency_modifier": worker.max_concurrency}
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
