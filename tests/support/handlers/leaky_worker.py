"""The product's worker around an engine that shows each job in every way that a process has.

The seed of a job decides what becomes of it: see `FATES`.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import quote_plus, urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import handler
from pixpod.bootstrap import build_worker
from pixpod.errors import DeviceUnavailable
from pixpod.serving import runpod_sdk
from pixpod.testing.fake_engine import FakeEngine

LEAKS_LATER_S = 0.3
STEP_S = 0.05
CONCURRENCY = 10
SUCCEEDS, RAISES, RAISES_A_GROUP, BREAKS_THE_GPU, IS_KILLED = FATES = range(5)


RAW: ContextVar[dict] = ContextVar("raw")
"""The job of this context, as it was given."""


class LeakyEngine(FakeEngine):
    """Says all that there is to know of a job."""

    async def generate(self, request, on_step=None):
        alone = FakeEngine(seconds=STEP_S * request.sampling.num_inference_steps)
        generation = await alone.generate(request, on_step)
        raw, fate = RAW.get(), request.seeds[0]
        thread = threading.Thread(target=leak_all, args=(raw,))
        thread.start()
        await asyncio.to_thread(thread.join)
        self.leak_from_the_loop(raw)
        threading.Thread(target=leak_later, args=(raw,)).start()
        if fate == RAISES:
            raise RuntimeError(f"no image for {raw}")
        if fate == RAISES_A_GROUP:
            raise ExceptionGroup(repr(raw), [ValueError(json.dumps(raw, indent=1))])
        if fate == BREAKS_THE_GPU:
            raise DeviceUnavailable("cuda does not compute") from RuntimeError(f"CUDA: {raw!r}")
        if fate == IS_KILLED and is_first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        return generation

    def leak_from_the_loop(self, raw):
        context = {"message": f"LEAK loop: {raw}", "exception": ValueError(raw)}
        asyncio.get_running_loop().call_exception_handler(context)


def is_first_time():
    mark = Path(os.environ["TMPDIR"]) / "killed"
    if mark.exists():
        return False
    mark.touch()
    return True


def leak_all(raw):
    """In a thread that has not the job's context."""
    library = logging.getLogger("library")
    library.error("LEAK logger: %s", raw, extra={"job": raw, "body": json.dumps(raw).encode()})
    quiet = logging.getLogger("quiet")  # as diffusers and transformers do
    quiet.handlers, quiet.propagate = [logging.StreamHandler()], False
    quiet.error("LEAK handler: %r", raw)
    print("LEAK stdout:", json.dumps(raw))
    print("LEAK stderr:", repr(raw), file=sys.stderr)
    warnings.warn(f"LEAK warning: {raw}", stacklevel=1)
    for name, value in texts(raw):
        print("LEAK url:", name, quote_plus(value), urlencode({name: value}), value.encode())
    try:
        raise KeyError(json.dumps(raw))
    except KeyError:
        print("LEAK traceback:", traceback.format_exc())
    from runpod.serverless import log

    log.error("LEAK SDK: " + json.dumps({"error_message": repr(raw)}, indent=4))
    log.error("LEAK SDK, cut: " + json.dumps(raw) + "." * 3_000 + str(raw))
    raise RuntimeError(f"LEAK thread: {raw}")


def leak_later(raw):
    time.sleep(LEAKS_LATER_S)
    logging.getLogger("library").error("LEAK later: %s", raw)


def texts(value, name="job"):
    if isinstance(value, dict):
        for key, each in value.items():
            yield from texts(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each, name)
    elif isinstance(value, str):
        yield name, value


class LeakyWorker:
    """Hands jobs to the worker, several at a time, and shows them to its engine."""

    def __init__(self, worker):
        self.inner = worker
        worker.engine = LeakyEngine()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def max_concurrency(self, current):
        return CONCURRENCY

    async def handle(self, raw):
        RAW.set(raw)
        return await self.inner.handle(raw)


def build_leaky_worker(*args, **kwargs):
    return LeakyWorker(build_worker(*args, **kwargs))


if __name__ == "__main__":
    vars(handler)["build_worker"] = build_leaky_worker
    runpod_sdk.leave(handler.main())
