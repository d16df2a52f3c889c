"""The product's worker, by the SDK, around an engine whose GPU no longer computes."""

import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from pixpod.errors import DeviceUnavailable
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
from pixpod.settings import keep_sdk_quiet
from pixpod.testing.fake_engine import FakeEngine
from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import ScriptedWorker, build
from pixpod.timeline import BootTimeline

SPEC = ScriptedWorker(
    times=ScriptedTimes(batch_s=0, image_s=0, max_batch_size=1), max_concurrency=2
)

if __name__ == "__main__":
    keep_sdk_quiet(os.environ)
    logging.captureWarnings(True)
    drain = Drain()
    worker = build(SPEC, runpod_sdk.platform(drain))
    worker.engine = FakeEngine(fail_with=DeviceUnavailable("cuda does not compute"), seconds=1.5)
    runpod_sdk.leave(runpod_sdk.serve(worker, BootTimeline(time.monotonic), drain))
