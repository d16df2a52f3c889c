"""An async handler that does what its input says: `{"do": NAME, ...}`, see `ACTIONS`.

`CONCURRENCY` and `REFRESH_WORKER` in its environment configure the worker.
"""

import asyncio
import builtins
import os
import sys
from pathlib import Path

import runpod

POLL_S = 0.02
limits = {"concurrency": int(os.environ.get("CONCURRENCY", "1"))}
STRANGE = {
    "set": {1, 2},
    "bytes": b"raw",
    "generator": (number for number in [1, 2]),
    "nan": float("nan"),
}
"""Results that JSON does not have."""

barriers: dict[int, asyncio.Barrier] = {}
afterwards: set[asyncio.Task] = set()


async def give(job, value=None):
    return value


async def give_strange(job, name):
    return STRANGE[name]


async def give_text(job, num_bytes):
    return "x" * num_bytes


async def sleep(job, seconds, value="slept"):
    await asyncio.sleep(seconds)
    return value


async def hold(job, until, note=None):
    """Until the file `until` exists; a cancellation is noted in the file `note`."""
    try:
        while not Path(until).exists():
            await asyncio.sleep(POLL_S)
    except asyncio.CancelledError:
        if note is not None:
            Path(note).write_text("cancelled", encoding="utf-8")
        raise
    return "released"


async def swallow(job, until):
    """Goes on for a while when it is cancelled, and returns as if nothing had been."""
    try:
        return await hold(job, until)
    except asyncio.CancelledError:
        await asyncio.sleep(0.1)
        return "went on"


async def meet(job, others):
    """Returns when `others` jobs are here at the same time."""
    return await barriers.setdefault(others, asyncio.Barrier(others)).wait()


async def set_concurrency(job, value):
    limits["concurrency"] = value


async def fail(job, name="ValueError", message="broken"):
    error = asyncio.CancelledError if name == "CancelledError" else getattr(builtins, name)
    raise error(message)


async def leave(job, code, is_rude=False):
    if is_rude:
        os._exit(code)
    sys.exit(code)


async def progress(job, values, until):
    for value in values:
        runpod.serverless.progress_update(job, value)
        await asyncio.sleep(0.2)
    return await hold(job, until)


async def progress_afterwards(job, value, until):
    """An update that comes when the job has ended."""

    async def update():
        await hold(job, until)
        runpod.serverless.progress_update(job, value)

    task = asyncio.create_task(update())
    afterwards.add(task)
    task.add_done_callback(afterwards.discard)
    return "done"


async def report(job):
    """What the worker has been given."""
    return {"job": job, "environ": dict(os.environ), "cwd": str(Path.cwd()), "pid": os.getpid()}


ACTIONS = {
    action.__name__: action
    for action in (
        give,
        give_strange,
        give_text,
        sleep,
        hold,
        swallow,
        meet,
        set_concurrency,
        fail,
        leave,
        progress,
        progress_afterwards,
        report,
    )
}


async def handler(job):
    asked = dict(job["input"])
    return await ACTIONS[asked.pop("do")](job, **asked)


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": handler,
            "concurrency_modifier": lambda current: limits["concurrency"],
            "refresh_worker": "REFRESH_WORKER" in os.environ,
        }
    )
