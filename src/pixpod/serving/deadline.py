"""Time limit of a whole job, from parsing to the last upload."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pixpod.errors import DeadlineExceeded
from pixpod.serving.progress import Position

ANSWER_S = 1.0
"""Time kept free before the platform's own limit, after which it ignores a reply."""


def limit_s(max_job_s: float, execution_timeout_s: float | None) -> float:
    """Return the deployment's limit, or less if the platform would end the job before."""
    if execution_timeout_s is None:
        return max_job_s
    return min(max_job_s, max(execution_timeout_s - ANSWER_S, execution_timeout_s / 2))


@asynccontextmanager
async def deadline(seconds: float, position: Callable[[], Position]) -> AsyncIterator[None]:
    """Cancel the block when its time is over.

    A thread that encodes or uploads at that moment goes on in the background, and its result is
    dropped. Raises DeadlineExceeded, which says how far the job got.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as exc:
        if not limit.expired():
            raise
        raise DeadlineExceeded(_text(seconds, position())) from exc


def _text(seconds: float, reached: Position) -> str:
    if reached.step == 0:
        return (
            f"not begun after {seconds:g} s of waiting for the model or the GPU: send the job "
            "again when fewer wait, or give the endpoint more workers"
        )
    if reached.step >= reached.steps:
        return (
            f"stopped after {seconds:g} s while its images were encoded and stored: request fewer "
            "images, or raise PIXPOD_MAX_JOB_S and executionTimeout"
        )
    return (
        f"stopped after {seconds:g} s at step {reached.step} of {reached.steps}: request fewer "
        "steps, fewer images or a smaller size, or raise PIXPOD_MAX_JOB_S and executionTimeout"
    )
