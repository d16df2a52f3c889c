"""How long a job may take until its images are drawn.

Delivery is not under it: images that are drawn are paid for, and stores have limits of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pixpod.errors import DeadlineExceeded
from pixpod.serving.progress import Position

ANSWER_S = 1.0
"""Kept free at the end of the platform's own limit: after that no answer would be read."""


def limit_s(max_job_s: float, execution_timeout_s: float | None) -> float:
    """The deployment's limit, or less if the platform would end the job before."""
    if execution_timeout_s is None:
        return max_job_s
    return min(max_job_s, max(execution_timeout_s - ANSWER_S, execution_timeout_s / 2))


@asynccontextmanager
async def deadline(seconds: float, position: Callable[[], Position]) -> AsyncIterator[None]:
    """Cancel what the block awaits when its time is over.

    Raises DeadlineExceeded, which says how far it got.
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
            f"not begun after {seconds:g} s of waiting for the model or the card: send it again "
            "when less is asked of the endpoint, or give it more workers"
        )
    return (
        f"stopped after {seconds:g} s at step {reached.step} of {reached.steps}: ask for fewer "
        "steps, fewer images or a smaller size, or raise PIXPOD_MAX_JOB_S and executionTimeout"
    )
