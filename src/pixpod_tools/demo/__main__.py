"""The main job end to end on one machine: two jobs through the emulated platform, images into S3.

Starts a local S3 server, the emulator of RunPod's platform with `handler.py` behind it, and a
client app that listens for webhooks. Submits a FLUX (FP8) and an SDXL job, waits for the webhook
of each, fetches the images by their links, checks that they show what was asked for, and saves
them. Everything listens on 127.0.0.1 only.
"""

import argparse
import io
import json
import logging
import queue
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import runpod
from PIL import Image
from support.s3_server import S3Server, running_s3

from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import Colour, Scene, Shape
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[1]
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
        running_s3() as server,
        tempfile.TemporaryDirectory() as state_dir,
        running_platform(server, Path(state_dir)) as platform,
        running_client_app() as app,
    ):
        for model, scene in SCENES.items():
            submit(platform, app, model, scene)
        verdicts = [report_next(app, out) for _ in SCENES]
        report_bill(platform)
        keep_logs(Path(state_dir), out)
    return 0 if all(verdicts) else 1


def submit(platform: RunningEmulator, app: "ClientApp", model: str, scene: Scene) -> None:
    """An asynchronous job, as a client app submits it with RunPod's SDK."""
    runpod.api_key, runpod.endpoint_url_base = platform.api_key, platform.base_url
    request = {
        "input": {"model": model, "prompt": scene.caption, "seed": 7},
        "webhook": app.url,
    }
    job = runpod.Endpoint("pixpod").run(request)
    print(f"\n{json.dumps(request['input'])}\n  submitted: job {job.job_id}, {job.status()}")


def report_next(app: "ClientApp", out: Path) -> bool:
    """Wait for one webhook, and say whether its image is what was asked for."""
    told = app.events.get(timeout=JOB_LIMIT_S)
    print(f"\nWebhook: job {told['id']} is {told['status']}")
    if told["status"] != "COMPLETED":
        print(f"  failed: {told.get('error')}")
        return False
    model = told["input"]["model"]
    image = told["output"]["images"][0]
    with urllib.request.urlopen(image["url"], timeout=10) as response:
        fetched = response.read()
    path = out / f"{model}.png"
    path.write_bytes(fetched)
    drawn = np.asarray(Image.open(io.BytesIO(fetched)).convert("RGB"))
    is_right = check(drawn, SCENES[model]).is_right
    report(told, path, is_right)
    return is_right


def report(told: dict[str, Any], path: Path, is_right: bool) -> None:
    output = told["output"]
    model, image = output["model"], output["images"][0]
    print(f"  ran:     {model['name']}, revision {model['revision']}, {model['precision']}")
    print(f"  fetched: {image['size_bytes']} bytes of {image['content_type']} from its S3 link")
    print(f"  saved:   {path}")
    print(f"  matches its prompt: {'yes' if is_right else 'NO'}")
    print(f"  waited {told['delayTime']} ms, ran {told['executionTime']} ms", end="")
    print(f" on worker {told['workerId']}")
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
def running_platform(server: S3Server, state_dir: Path) -> Iterator[RunningEmulator]:
    """The emulator with an endpoint `pixpod`, set up for this bucket."""
    environ = {
        "PIXPOD_S3_BUCKET": server.bucket,
        "PIXPOD_S3_ENDPOINT_URL": server.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": server.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "PIXPOD_S3_PREFIX": "demo",
    }
    settings = settings_for(
        ROOT / "handler.py", state_dir, endpoint_id="pixpod", env=environ, workers_max=1
    )
    with running_emulator(settings) as platform:
        yield platform


class ClientApp(ThreadingHTTPServer):
    """Stands for the app of a customer: keeps what the platform posts to its webhook."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Webhook)
        self.url = f"http://127.0.0.1:{self.server_port}/runpod"
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()


class _Webhook(BaseHTTPRequestHandler):
    server: ClientApp

    def do_POST(self) -> None:
        self.server.events.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the demo tells what came."""


@contextmanager
def running_client_app() -> Iterator[ClientApp]:
    app = ClientApp()
    thread = threading.Thread(target=app.serve_forever)
    thread.start()
    try:
        yield app
    finally:
        app.shutdown()
        thread.join()
        app.server_close()


if __name__ == "__main__":
    sys.exit(main())
