"""Run two jobs end to end on one machine: through the emulated platform, with images in S3.

Starts a local S3 server, the emulator of RunPod's platform with `handler.py` behind it, and a
client app that listens for webhooks. Submits a FLUX (FP8) and an SDXL job, waits for the webhook
of each, fetches the images by their links, checks that they show the requested scenes, and saves
them. Everything listens on 127.0.0.1 only.
"""

import argparse
import io
import json
import logging
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import runpod
from PIL import Image

from pixpod_tools.demo.client_app import ClientApp, running_client_app
from pixpod_tools.demo.s3_server import running_s3
from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import Colour, Scene, Shape
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[3]
JOB_LIMIT_S = 300

SCENES = {
    "flux-tiny": Scene(colour=Colour.RED, shape=Shape.CIRCLE, background=Colour.BLUE),
    "sdxl-tiny": Scene(colour=Colour.YELLOW, shape=Shape.SQUARE, background=Colour.PURPLE),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/demo")
    parser.add_argument("--out", type=Path, default=Path("images/demo"), help="folder for images")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("runpod_emulator").setLevel(logging.WARNING)
    print("Starting a local S3 server, and handler.py behind the emulated platform ...")
    with (
        running_s3() as environ,
        tempfile.TemporaryDirectory() as state_dir,
        running_platform(environ, Path(state_dir)) as platform,
        running_client_app() as app,
    ):
        for model, scene in SCENES.items():
            submit(platform, app, model, scene)
        verdicts = [report_next(app, out) for _ in SCENES]
        report_bill(platform)
        keep_logs(Path(state_dir), out)
    return 0 if all(verdicts) else 1


def submit(platform: RunningEmulator, app: ClientApp, model: str, scene: Scene) -> None:
    """Submit an asynchronous job as a client app does with RunPod's SDK."""
    runpod.api_key, runpod.endpoint_url_base = platform.api_key, platform.base_url
    request = {
        "input": {"model": model, "prompt": scene.caption, "seed": 7},
        "webhook": app.url,
    }
    job = runpod.Endpoint("pixpod").run(request)
    print(f"\n{json.dumps(request['input'])}\n  submitted: job {job.job_id}, {job.status()}")


def report_next(app: ClientApp, out: Path) -> bool:
    """Wait for one webhook, and return whether its image shows the requested scene."""
    event = app.events.get(timeout=JOB_LIMIT_S)
    print(f"\nWebhook: job {event['id']} is {event['status']}")
    if event["status"] != "COMPLETED":
        print(f"  failed: {event.get('error')}")
        return False
    model = event["input"]["model"]
    image = event["output"]["images"][0]
    with urllib.request.urlopen(image["url"], timeout=10) as response:
        fetched = response.read()
    path = out / f"{model}.png"
    path.write_bytes(fetched)
    pixels = np.asarray(Image.open(io.BytesIO(fetched)).convert("RGB"))
    is_right = check(pixels, SCENES[model]).is_right
    report(event, path, is_right)
    return is_right


def report(event: dict[str, Any], path: Path, is_right: bool) -> None:
    output = event["output"]
    model, image = output["model"], output["images"][0]
    print(f"  ran:     {model['name']}, revision {model['revision']}, {model['precision']}")
    print(f"  fetched: {image['size_bytes']} bytes of {image['content_type']} from its S3 link")
    print(f"  saved:   {path}")
    print(f"  matches its prompt: {'yes' if is_right else 'NO'}")
    print(f"  waited {event['delayTime']} ms, ran {event['executionTime']} ms", end="")
    print(f" on worker {event['workerId']}")
    phases = {name: spent for name, spent in output["timings_ms"].items() if spent}
    print("  phases:  " + ", ".join(f"{name} {spent:.0f} ms" for name, spent in phases.items()))
    if output["worker"]["cold_start"]:
        boot = output["worker"]["boot_ms"]
        print("  boot:    " + ", ".join(f"{name} {spent:.0f} ms" for name, spent in boot.items()))


def report_bill(platform: RunningEmulator) -> None:
    endpoint = platform.state()["endpoints"]["pixpod"]
    gpu = endpoint["settings"]["gpu"]
    print(f"\nOn RunPod, {endpoint['billed_s']} s of one {gpu}: ${endpoint['cost_usd']:.4f}")


def keep_logs(state_dir: Path, out: Path) -> None:
    log = out / "worker.log"
    log.write_bytes(b"".join(each.read_bytes() for each in (state_dir / "logs").glob("*.log")))
    print(f"The worker's log: {log}")


@contextmanager
def running_platform(environ: dict[str, str], state_dir: Path) -> Iterator[RunningEmulator]:
    """Run the emulator with an endpoint `pixpod`, whose workers have these variables."""
    settings = settings_for(
        ROOT / "handler.py", state_dir, endpoint_id="pixpod", env=environ, workers_max=1
    )
    with running_emulator(settings) as platform:
        yield platform


if __name__ == "__main__":
    sys.exit(main())
