"""What the golden files must say, computed afresh.

After a wanted change of the contract, renew them and read the diff:

    PYTHONPATH=src:tests .venv/bin/python -m support.golden
"""

import hashlib
import json
from dataclasses import asdict, replace

from support.bad_payloads import BAD_PAYLOADS
from support.factories import GOLDEN, OFFER

from pixpod.contract.payload import parse_job, render_error, render_result
from pixpod.errors import OutOfMemory, PayloadError
from pixpod.job import (
    Cost,
    EncodedImage,
    ImageFormat,
    JobResult,
    ModelIdentity,
    StoredImage,
    WorkerReport,
)

PROMPT = "a red circle on a blue background"
MINIMAL = {
    "flux": {"model": "flux-dev", "prompt": PROMPT},
    "sdxl": {"model": "sdxl", "prompt": PROMPT},
    "sd15": {"model": "sd15", "prompt": PROMPT},
}
OUTPUT = {
    "format": "webp",
    "quality": 85,
    "delivery": "directory",
    "key_prefix": "customers/42",
    "name": "poster",
    "metadata": False,
}
COMMON = {
    "api_version": 1,
    "prompt": PROMPT,
    "negative_prompt": "text, frame",
    "num_inference_steps": 20,
    "guidance_scale": 6.5,
    "on_long_prompt": "truncate",
    "deterministic": True,
    "output": OUTPUT,
}
FULL = {
    "flux": COMMON
    | {
        "model": "flux-dev",
        "prompt_2": "flat colours, sharp edges",
        "width": 1216,
        "height": 832,
        "true_cfg_scale": 2.5,
        "max_sequence_length": 256,
        "quality": "turbo",
        "num_images": 2,
        "seed": 7,
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    "sdxl": COMMON
    | {
        "model": "sdxl",
        "prompt_2": "flat colours, sharp edges",
        "width": 1208,
        "height": 832,
        "quality": "max",
        "prompt_weights": True,
        "clip_skip": 1,
        "seed": [0, 9007199254740991],
        "scheduler": "DPMSolverMultistepScheduler",
    },
    "sd15": COMMON
    | {
        "model": "sd15",
        "width": 768,
        "height": 520,
        "num_images": 3,
        "scheduler": "UniPCMultistepScheduler",
    },
}

IMAGE = EncodedImage(
    index=0,
    seed=7,
    width=64,
    height=64,
    format=ImageFormat.PNG,
    sha256=hashlib.sha256(b"picture").hexdigest(),
    size_bytes=len(b"picture"),
    data=b"picture",
)
KEY = "images/job-1/0-0123456789abcdef0123456789abcdef.png"
RESULT = JobResult(
    images=(),
    model=ModelIdentity(name="flux-dev", revision="0ef5fff", precision="bfloat16", weights="baked"),
    steps=28,
    timings_ms={
        "queue": 0.04,
        "onload": 5.0,
        "text_encode": 12.345,
        "denoise": 1000.06,
        "decode": 20.0,
        "encode": 30.0,
        "upload": 40.0,
        "total": 1107.445,
    },
    cost=Cost(gpu="NVIDIA L4", gpu_ms=1032.405, estimated_usd=0.00019616, basis="a price list"),
    worker=WorkerReport(id="pod-1", cold_start=True, boot_ms={"import": 2000.05}, images_served=1),
    warnings=("prompt: only 77 of its 90 tokens are read by CLIP; T5 reads it as well",),
)
PLACES = {
    "s3": {"key": KEY, "url": "https://bucket.example.org/" + KEY + "?X-Amz-Signature=abc"},
    "inline": {"data": "cGljdHVyZQ=="},
    "directory": {"key": KEY, "path": "images/" + KEY},
    "put": {},
    "bucket_without_links": {"key": KEY},
}


def golden_files():
    """All golden files by name."""
    files = {}
    for kind, inputs in (("minimal", MINIMAL), ("full", FULL)):
        for family, given in inputs.items():
            job = {"id": "job-1", "input": given}
            files[f"request_{family}_{kind}.json"] = {
                "job": job,
                "parsed": asdict(parse_job(job, OFFER)),
            }
    for delivery, place in PLACES.items():
        stored = StoredImage(image=IMAGE, **place)
        files[f"reply_{delivery}.json"] = render_result(replace(RESULT, images=(stored,)))
    files["reply_invalid_input.json"] = _refusal("everything at once")
    files["reply_out_of_memory.json"] = render_error(
        OutOfMemory("flux-dev: no memory for 4 images")
    )
    return {name: _as_read(content) for name, content in files.items()}


def _refusal(id):
    (bad,) = (bad for bad in BAD_PAYLOADS if bad.id == id)
    try:
        parse_job(bad.job, OFFER)
    except PayloadError as error:
        return render_error(error)
    raise AssertionError(f"{id!r} is accepted")


def _as_read(content):
    return json.loads(json.dumps(content))


if __name__ == "__main__":
    for name, content in golden_files().items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (GOLDEN / name).write_text(text + "\n", encoding="utf-8")
