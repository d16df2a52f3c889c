"""The product's worker with the settings of its environment, by the SDK, around a FakeEngine.

A job takes `FAKE_ENGINE_S` seconds. Each denoising step is a line of the file `FAKE_ENGINE_STEPS`.
"""

import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from pixpod.bootstrap import build_worker
from pixpod.logs import configure_logging
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
from pixpod.settings import Settings, keep_sdk_quiet
from pixpod.testing.fake_engine import FakeEngine
from pixpod.timeline import BootTimeline


class CountedEngine(FakeEngine):
    """Writes down its steps, also those of requests that do not end."""

    async def generate(self, request, on_step=None):
        def count(step, steps):
            with Path(os.environ["FAKE_ENGINE_STEPS"]).open("a") as file:
                file.write(f"{request.seeds[0]} {step}\n")
            on_step(step, steps)

        return await super().generate(request, count)


def main():
    keep_sdk_quiet(os.environ)
    configure_logging("INFO")
    logging.captureWarnings(True)
    drain = Drain()
    platform = runpod_sdk.platform(drain)
    worker = build_worker(Settings.from_env(os.environ), platform=platform)
    worker.engine = CountedEngine(seconds=float(os.environ["FAKE_ENGINE_S"]))
    worker.concurrency.is_warm = lambda: True
    worker.start()
    return runpod_sdk.serve(worker, BootTimeline(time.monotonic), drain)


if __name__ == "__main__":
    runpod_sdk.leave(main())
