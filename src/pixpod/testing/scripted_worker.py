"""The product's worker around a ScriptedEngine, run as a process of its own by the SDK.

The variable `SCRIPTED_WORKER` holds the JSON of a ScriptedWorker.
"""

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pydantic import SecretStr

from pixpod.catalog import load_catalog
from pixpod.contract.rules import Capabilities
from pixpod.inputs.client import GuardedClient
from pixpod.inputs.targets import Targets, parse_opened
from pixpod.job import Delivery, Quality
from pixpod.logs import configure_logging
from pixpod.outputs.storage import DirectoryImageStore, InlineImageStore
from pixpod.serving import runpod_sdk
from pixpod.serving.concurrency import Concurrency
from pixpod.serving.dead_letters import DeadLetters
from pixpod.serving.delivery import ImageDelivery
from pixpod.serving.draining import Drain
from pixpod.serving.refresh import Refresh
from pixpod.serving.webhooks import TRY_S, Webhooks
from pixpod.serving.worker import Platform, Worker
from pixpod.settings import keep_sdk_quiet
from pixpod.testing.scripted_engine import ScriptedEngine, ScriptedTimes
from pixpod.timeline import BootTimeline

HANDLER = Path(__file__)
VARIABLE = "SCRIPTED_WORKER"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedWorker:
    """The times of the worker's engine, and the worker's settings of the same names.

    With `webhook_secret`, it sends webhooks to `webhook_target`, an entry of PIXPOD_ALLOW_TARGETS,
    and keeps dead letters in `output_dir`.
    """

    times: ScriptedTimes
    max_concurrency: int = 1
    refresh_after_images: int = 0
    max_job_s: float = 600.0
    usd_per_gpu_second: float = 0.001
    webhook_secret: str = ""
    webhook_target: str = ""
    webhook_try_s: float = TRY_S
    output_dir: str = "images"

    def environ(self) -> dict[str, str]:
        """Return the environment that makes `HANDLER` run this worker."""
        return {VARIABLE: json.dumps(asdict(self))}


def build(spec: ScriptedWorker, platform: Platform) -> Worker:
    engine = ScriptedEngine(spec.times)
    models = load_catalog()
    opened = (parse_opened(spec.webhook_target),) if spec.webhook_target else ()
    targets = Targets(opened=opened)
    return Worker(
        capabilities=Capabilities(
            models=models,
            qualities=dict.fromkeys(models, (Quality.DEFAULT,)),
            deliveries=(Delivery.INLINE,),
            targets=targets,
            signs_webhooks=bool(spec.webhook_secret),
        ),
        engine=engine,
        delivery=ImageDelivery(
            stores={Delivery.INLINE: InlineImageStore()},
            key_prefix="",
            key_secret=SecretStr(""),
            max_reply_bytes=10_000_000,
        ),
        usd_per_gpu_second=spec.usd_per_gpu_second,
        concurrency=Concurrency(
            max_when_warm=spec.max_concurrency,
            is_warm=lambda: engine.is_warm,
            num_taken=platform.num_taken_jobs,
        ),
        refresh=Refresh(after_images=spec.refresh_after_images),
        platform=platform,
        worker_id="scripted",
        max_job_s=spec.max_job_s,
        webhooks=build_webhooks(spec, targets) if spec.webhook_secret else None,
    )


def build_webhooks(spec: ScriptedWorker, targets: Targets) -> Webhooks:
    secrets = (SecretStr(spec.webhook_secret),)
    store = DirectoryImageStore(Path(spec.output_dir))
    return Webhooks(
        client=GuardedClient(targets, retry_waits_s=()),
        secrets=secrets,
        letters=DeadLetters(store=store, secrets=secrets),
        try_s=spec.webhook_try_s,
    )


def main() -> int:
    """Return the exit status."""
    given = json.loads(os.environ[VARIABLE])
    times = ScriptedTimes(**given.pop("times"))
    keep_sdk_quiet(os.environ)
    configure_logging("INFO")
    logging.captureWarnings(True)
    drain = Drain()
    worker = build(ScriptedWorker(times=times, **given), runpod_sdk.platform(drain))
    worker.start()
    return runpod_sdk.serve(worker, BootTimeline(time.monotonic), drain)


if __name__ == "__main__":
    runpod_sdk.leave(main())
