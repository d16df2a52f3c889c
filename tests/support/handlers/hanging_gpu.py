"""The product's worker, by the SDK. On the first host, its engine has a GPU that never returns.

The worker that makes the file BAD_HOST is on that host; those that find it are on others. The
file GPU_HANGS appears when a job is on that GPU.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.hanging_gpu import HangingModel, LoadedAlready

from pixpod.engine.base import OnStep
from pixpod.engine.engine import DiffusionEngine
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.errors import WorkerError
from pixpod.serving import runpod_sdk
from pixpod.serving.draining import Drain
from pixpod.settings import keep_sdk_quiet
from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import ScriptedWorker, build
from pixpod.timeline import BootTimeline

SPEC = ScriptedWorker(
    times=ScriptedTimes(batch_s=0, image_s=0, max_batch_size=1), max_concurrency=2
)
RETURN_LIMIT_S = 2.0


class ReportingModel(HangingModel):
    def execute(
        self, items: Sequence[BatchItem], on_step: OnStep
    ) -> list[ItemResult | WorkerError]:
        Path(os.environ["GPU_HANGS"]).touch()
        return super().execute(items, on_step)


def hanging_engine(timeline: BootTimeline) -> DiffusionEngine:
    loader: Any = LoadedAlready(ReportingModel(), "NVIDIA H200")
    return DiffusionEngine(
        models={},
        loader=loader,
        timeline=timeline,
        preload=False,
        warmup_sizes=(),
        is_batching=True,
        on_host_fault=runpod_sdk.leave_host,
        return_limit_s=RETURN_LIMIT_S,
    )


def is_first_host() -> bool:
    try:
        Path(os.environ["BAD_HOST"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    keep_sdk_quiet(os.environ)
    logging.captureWarnings(True)
    drain, timeline = Drain(), BootTimeline(time.monotonic)
    worker = build(SPEC, runpod_sdk.platform(drain))
    if is_first_host():
        worker.engine = hanging_engine(timeline)
    runpod_sdk.leave(runpod_sdk.serve(worker, timeline, drain))
