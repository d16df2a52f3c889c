"""The main job end to end on one machine: two jobs through the real SDK, images into S3.

Starts a local S3 server and the handler under RunPod's SDK, submits a FLUX (FP8) and an SDXL
job, fetches the images back by their links, checks that they show what was asked for, and saves
them. Everything listens on 127.0.0.1 only.
"""

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.juicefs import free_port
from support.s3_server import S3Server, running_s3

from tiny_checkpoints.checker import check
from tiny_checkpoints.scenes import Colour, Scene, Shape

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT_S = 60
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
    print("Starting a local S3 server and the handler under RunPod's SDK ...")
    with running_s3() as server, running_handler(server, out / "worker.log") as url:
        verdicts = [run_job(url, model, scene, out) for model, scene in SCENES.items()]
    print(f"\nThe worker's log: {out / 'worker.log'}")
    return 0 if all(verdicts) else 1


def run_job(url: str, model: str, scene: Scene, out: Path) -> bool:
    """Submit one job, report it, and say whether its image is what was asked for."""
    job = {"input": {"model": model, "prompt": scene.caption, "seed": 7}}
    print(f"\n{json.dumps(job)}")
    answer = post(f"{url}/runsync", job)
    if answer.get("status") != "COMPLETED":
        print(f"  failed: {answer.get('error')}")
        return False
    output = answer["output"]
    image = output["images"][0]
    with urllib.request.urlopen(image["url"], timeout=10) as response:
        fetched = response.read()
    path = out / f"{model}.png"
    path.write_bytes(fetched)
    is_right = check(np.asarray(Image.open(io.BytesIO(fetched)).convert("RGB")), scene).is_right
    report(output, path, is_right)
    return is_right


def report(output: dict[str, Any], path: Path, is_right: bool) -> None:
    model, image = output["model"], output["images"][0]
    print(f"  ran:     {model['name']}, revision {model['revision']}, {model['precision']}")
    print(f"  fetched: {image['size_bytes']} bytes of {image['content_type']} from its S3 link")
    print(f"  saved:   {path}")
    print(f"  matches its prompt: {'yes' if is_right else 'NO'}")
    phases = {name: spent for name, spent in output["timings_ms"].items() if spent}
    print("  phases:  " + ", ".join(f"{name} {spent:.0f} ms" for name, spent in phases.items()))
    if output["worker"]["cold_start"]:
        boot = output["worker"]["boot_ms"]
        print("  boot:    " + ", ".join(f"{name} {spent:.0f} ms" for name, spent in boot.items()))


@contextmanager
def running_handler(server: S3Server, log: Path) -> Iterator[str]:
    """`handler.py` behind the SDK's own HTTP server, set up for this bucket; yields its URL."""
    port = free_port()
    command = [
        sys.executable,
        str(ROOT / "handler.py"),
        "--rp_serve_api",
        f"--rp_api_port={port}",
        "--rp_api_host=127.0.0.1",
    ]
    environ = os.environ | {
        "PIXPOD_S3_BUCKET": server.bucket,
        "PIXPOD_S3_ENDPOINT_URL": server.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": server.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "PIXPOD_S3_PREFIX": "demo",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        try:
            wait_for_port(port, process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"The handler did not start; the end of its log:\n{log.read_text()[-2000:]}")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=JOB_LIMIT_S) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


if __name__ == "__main__":
    sys.exit(main())
