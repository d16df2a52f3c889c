"""The product's worker with the settings of its environment, by the SDK, around a FakeEngine.

A job takes `FAKE_ENGINE_S` seconds. Each denoiser call is a line of the file `COUNT_FILE`.
"""

import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.counting_engine import CountingEngine
from support.handlers.counting import add_line

from pixpod.bootstrap import build_worker
from pixpod.logs import configure_logging
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
from pixpod.settings import Settings, keep_sdk_quiet
from pixpod.testing.fake_engine import FakeEngine
from pixpod.timeline import BootTimeline


def main():
    keep_sdk_quiet(os.environ)
    configure_logging("INFO")
    logging.captureWarnings(True)
    drain = Drain()
    platform = runpod_sdk.platform(drain)
    worker = build_worker(Settings.from_env(os.environ), platform=platform)
    engine = FakeEngine(seconds=float(os.environ["FAKE_ENGINE_S"]))
    worker.engine = CountingEngine(engine, add_line)
    worker.concurrency.is_warm = lambda: True
    worker.start()
    return runpod_sdk.serve(worker, BootTimeline(time.monotonic), drain)


if __name__ == "__main__":
    runpod_sdk.leave(main())
