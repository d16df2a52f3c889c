"""Compare images of two checkouts pixel by pixel. Temporary: goes when the restructuring is done.

Both checkouts are black boxes: a child process with that checkout's `src` on its path builds a
worker from the environment and handles jobs. The two run in turns, with one thread each.
Usage: scripts/compare_images.py --base PATH [--except DDIM] [--models sdxl-tiny]
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

PRECISIONS = {
    "flux-tiny": (
        "float32",
        "bfloat16",
        "float16",
        "float8_dynamic",
        "float8_weight_only",
        "int8_dynamic",
    ),
    "sdxl-tiny": ("float32", "bfloat16", "float16"),
    "sd15-tiny": ("float32", "bfloat16", "float16"),
}
UNET_SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "HeunDiscreteScheduler",
)
PROMPTS = (
    "a red circle on a blue background",
    "a green square on a yellow background",
    "a blue triangle on a white background",
    "a yellow circle on a black background",
)

CHILD = """
import asyncio, base64, hashlib, io, json, os, sys
import torch
torch.set_num_threads(1)
from PIL import Image
from pixpod.bootstrap import build_worker
from pixpod.settings import Settings

def report(name, reply):
    if "error" in reply:
        print(json.dumps({"request": name, "error": reply["error"]}), flush=True)
    for index, image in enumerate(reply.get("images", ())):
        pixels = Image.open(io.BytesIO(base64.b64decode(image["data"]))).convert("RGB")
        raw = pixels.tobytes()
        print(json.dumps({
            "request": name,
            "index": index,
            "size": pixels.size,
            "sha256": hashlib.sha256(raw).hexdigest(),
            "pixels": base64.b64encode(raw).decode(),
        }), flush=True)

async def run(session):
    worker = build_worker(Settings.from_env({**os.environ, **session["environment"]}))
    async with worker:
        for group in session["groups"]:
            jobs = []
            for name, payload in group:
                jobs.append(asyncio.create_task(worker.handle({"id": name, "input": payload})))
                await asyncio.sleep(session["delay_s"])
            for (name, _), reply in zip(group, await asyncio.gather(*jobs)):
                report(name, reply)

for session in json.load(sys.stdin):
    asyncio.run(run(session))
"""

Request = tuple[str, dict[str, Any]]
"""A name for the table, and the `input` of a job."""


def build_sessions(model: str) -> list[dict[str, Any]]:
    """Return the jobs of one model: a worker for each precision, jobs of one group concurrently."""
    return [
        {
            "environment": {
                "PIXPOD_MODELS": model,
                "PIXPOD_PRECISION": precision,
                "PIXPOD_DEVICE": "cpu",
                "PIXPOD_COMPILE": "false",
            },
            "groups": list(build_groups(model, precision)),
            "delay_s": 0.02,
        }
        for precision in PRECISIONS[model]
    ]


def build_groups(model: str, precision: str) -> Iterator[list[Request]]:
    def request(name: str, **changes: object) -> Request:
        output = {"delivery": "inline", "format": "png"}
        payload = {"model": model, "prompt": PROMPTS[0], "seed": 5, "output": output, **changes}
        return f"{model}/{precision}/{name}", payload

    is_flux = model.startswith("flux")
    yield [request("one")]
    yield [request("two", num_images=2, seed=[7, 1000])]
    yield [request("four", num_images=4)]
    yield [request("wide", width=96, height=48, prompt=PROMPTS[1])]
    yield [request("tall", width=64, height=128, num_images=2, prompt=PROMPTS[2])]
    yield [request("deterministic", num_images=2, deterministic=True)]
    # the first is long enough for the others to be waiting together when it ends
    yield [
        request("busy", num_inference_steps=50, width=128, height=128),
        *(request(f"peer-{n}", prompt=PROMPTS[n], seed=n, num_images=1) for n in range(4)),
    ]
    yield [
        request("busy-2", num_inference_steps=50, width=128, height=128, seed=6),
        request("mixed-1", prompt=PROMPTS[1], num_images=3, guidance_scale=2.5),
        request("mixed-2", prompt=PROMPTS[2], num_images=1, guidance_scale=2.5),
        request("mixed-3", prompt=PROMPTS[3], num_images=2, guidance_scale=2.5),
    ]
    yield [request("steps-3", num_inference_steps=3, guidance_scale=0.0)]
    if is_flux:
        negative = {"negative_prompt": "a green square", "true_cfg_scale": 2.0}
        yield [request("true-cfg", **negative)]
        yield [request("true-cfg-two", num_images=2, **negative)]
        yield [request("prompt-2", prompt_2=PROMPTS[3], max_sequence_length=32)]
        yield [request("turbo", quality="turbo", num_inference_steps=20)]
    else:
        yield [request("negative", negative_prompt="a green square")]
        yield [request("negative-two", negative_prompt="a green square", num_images=2)]
        yield [request("guidance-1", guidance_scale=1.0, num_images=2)]
        for scheduler in UNET_SCHEDULERS:
            yield [request(scheduler, scheduler=scheduler)]
            yield [request(f"{scheduler}-two", scheduler=scheduler, num_images=2, seed=11)]
    if precision in ("float32", "bfloat16", "float16"):
        yield [request("max", quality="max")]


def run_side(checkout: Path, sessions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run one checkout; return its images, and errors, by their name."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIXPOD_")},
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(sessions),
        env=environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    return {f"{each['request']}[{each.get('index', 'error')}]": each for each in found}


def compare(base: dict[str, Any] | None, current: dict[str, Any] | None) -> str:
    """Return `equal`, `error` where both refuse alike, or the difference."""
    if base is None or current is None:
        return "only in the base" if base else "only in the current checkout"
    if "error" in base or "error" in current:
        codes = [side["error"].partition(":")[0] for side in (base, current)]
        return f"error ({codes[0]})" if codes[0] == codes[1] else f"{codes[0]} -> {codes[1]}"
    if base["sha256"] == current["sha256"] and base["size"] == current["size"]:
        return "equal"
    if base["size"] != current["size"]:
        return f"size {base['size']} -> {current['size']}"
    pixels = [
        np.frombuffer(base64.b64decode(side["pixels"]), np.uint8).astype(int)
        for side in (base, current)
    ]
    return f"differs by {np.abs(pixels[0] - pixels[1]).max()} levels"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--except", dest="excepted", nargs="*", default=[], metavar="NAME",
                        help="requests with this in their name may differ")  # fmt: skip
    parser.add_argument("--models", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    args = parser.parse_args()
    began = time.monotonic()
    counts = {"equal": 0, "error": 0, "excepted": 0, "different": 0}
    requests: set[str] = set()
    print(f"{'request':<58} result")
    for model in args.models:
        sessions = build_sessions(model)
        base, current = (run_side(checkout, sessions) for checkout in (args.base, ROOT))
        for name in {**base, **current}:
            result = compare(base.get(name), current.get(name))
            kind = result.split()[0]
            if kind not in ("equal", "error"):
                is_excepted = any(each in name for each in args.excepted)
                kind = "excepted" if is_excepted else "different"
            counts[kind] += 1
            if kind != "error":
                requests.add(name.partition("[")[0])
            print(f"{name:<58} {result}{' (excepted)' if kind == 'excepted' else ''}", flush=True)
    seconds = time.monotonic() - began
    figures = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{len(requests)} requests with images: {figures}; {seconds:.0f} s")
    return 1 if counts["different"] or not counts["equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
