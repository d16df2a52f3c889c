"""Answers jobs of a deployment that is set up wrongly."""

import logging
from collections.abc import Mapping
from typing import Any

from pixpod.contract.payload import render_error
from pixpod.contract.sensitive import sensitive_texts
from pixpod.errors import Fault, WorkerError
from pixpod.logs import job_context

log = logging.getLogger(__name__)


class RefusingWorker:
    """Stands in for a worker whose settings are wrong: each job is answered with the fault.

    That is cheaper for the owner than a worker that crashes and is started again on every host.
    """

    def __init__(self, error: WorkerError) -> None:
        self._error = error

    def check_host(self) -> None:
        """Raise the fault if it is this host's: a disk that fails when settings are read."""
        if self._error.fault is Fault.HOST:
            raise self._error

    def max_concurrency(self, current: int) -> int:
        """See `Worker.max_concurrency`; the SDK begins with one."""
        return current

    async def settle(self) -> None:
        """See `Worker.settle`; no job is run."""

    async def handle(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """See `Worker.handle`."""
        with job_context(raw.get("id"), sensitive_texts(raw)):
            log.error("job refused", extra={"error": str(self._error)})
        return render_error(self._error)
