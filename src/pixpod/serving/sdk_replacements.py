"""Parts of RunPod's SDK that are replaced: it drops results, and loses jobs when it is stopped.

Imports the SDK, which takes most of a second.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import Any

from aiohttp import ClientSession, TCPConnector
from runpod.http_client import get_auth_header
from runpod.serverless.modules import rp_http, rp_job, rp_scale

from pixpod.logs import job_context
from pixpod.serving.draining import ClosingSession, Drain, Sockets
from pixpod.serving.posting import Address, post_result, post_update

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.1


def replace(drain: Drain) -> None:
    """Have the SDK deliver results as `posting` does, and end as `drain` says."""
    rp_http._handle_result = handle_result
    rp_scale.JobScaler = partial(DrainingScaler, drain)


async def handle_result(
    session: ClientSession,
    job_data: Mapping[str, Any],
    job: Mapping[str, Any],
    url_template: str,
    log_message: str,
    is_stream: bool = False,
) -> None:
    """Post a result, or an update, for which the SDK calls this, too. Any: JSON documents."""
    url = f"{url_template.replace('$ID', job['id'])}&isStream={str(is_stream).lower()}"
    is_result = url_template == rp_http.JOB_DONE_URL and job_data.get("status") != "IN_PROGRESS"
    with job_context(job["id"]):
        address = Address(session=session, url=url, job_id=job["id"])
        await (post_result if is_result else post_update)(address, job_data)


class DrainingScaler(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
    """Takes jobs until the drain begins, and ends when all that have arrived are reported."""

    def __init__(self, drain: Drain, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._drain = drain
        self._sockets = Sockets()
        self._polls: ClientSession | None = None
        self.jobs_fetcher = self._take_jobs
        self.stop_signals_fetcher = self._take_stop_signals

    async def run(self) -> None:
        connector = TCPConnector(socket_factory=self._sockets.create)
        async with ClientSession(connector=connector, headers=get_auth_header()) as self._polls:
            await super().run()
        if self._drain.settle is not None:
            await self._drain.settle()

    def handle_shutdown(self, signum: int, frame: FrameType | None) -> None:
        """Called by the interpreter between any two instructions of the main thread."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # it has not begun to poll, or has ended
            self.kill_worker()
        else:
            loop.call_soon_threadsafe(self._drain.begin)

    async def _take_jobs(
        self, session: ClientSession, num_jobs: int
    ) -> list[dict[str, Any]] | None:
        if not self._drain.begun.is_set():
            assert self._polls is not None
            closing = ClosingSession(self._polls, self._drain.begun, self._sockets)
            jobs: list[dict[str, Any]] | None = await rp_job.get_job(closing, num_jobs)
            return jobs
        while self.current_occupancy() > 0:
            await asyncio.sleep(IDLE_POLL_S)
        self.kill_worker()
        return None

    async def _take_stop_signals(self, session: ClientSession) -> list[str]:
        """Jobs can be stopped until the last one is reported."""
        signals: list[str] = await rp_job.get_stop_signals(
            ClosingSession(session, self._shutdown_event)
        )
        return signals
