"""The jobs that are measured: payloads, the same for every side, from fixed seeds."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from pixpod.catalog import ModelSpec, load_catalog
from pixpod_bench.machine import ROOT
from pixpod_tools.tiny.scenes import sample_training_scene

WEIGHTS = ROOT / "model_cache"
MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
SIZES = {(64, 64): 0.6, (64, 96): 0.2, (96, 64): 0.2}
STEPS = {8: 0.7, 6: 0.2, 12: 0.1}
"""Frequencies of step numbers: most callers of an endpoint keep the default."""

NUM_SEEDS = 1_000_000

Payload = dict[str, Any]
"""Any: a JSON document. Names are those of diffusers' pipelines, beside `model` and `seed`."""


def worker_environ(**more: str) -> dict[str, str]:
    """Return the settings that all of pixpod's sides share, for the same work as stock pipelines.

    A CPU is quickest with these models in float32, and all sides generate the same images.
    """
    return {
        "PIXPOD_MODELS": ",".join(MODELS),
        "PIXPOD_DEVICE": "cpu",
        "PIXPOD_PRECISION": "float32",
        "PIXPOD_COMPILE": "false",
        "PIXPOD_PRELOAD": "true",
        "PIXPOD_DELIVERY": "inline",
        "PIXPOD_REFRESH_AFTER_IMAGES": "0",
        **more,
    }


def mixed_jobs(num_jobs: int, seed: int = 0) -> list[Payload]:
    """Return models in equal parts, sizes and steps with their frequencies, in random order."""
    rng = np.random.default_rng(seed)
    specs = [load_catalog()[model] for model in MODELS]
    sizes, steps = list(SIZES), list(STEPS)
    jobs = []
    for number in range(num_jobs):
        size = sizes[int(rng.choice(len(sizes), p=list(SIZES.values())))]
        num_steps = steps[int(rng.choice(len(steps), p=list(STEPS.values())))]
        jobs.append(_job(specs[number % len(specs)], rng, size, num_steps))
    return [jobs[position] for position in rng.permutation(num_jobs)]


def same_size_jobs(model: str, num_jobs: int, seed: int = 0) -> list[Payload]:
    """Return jobs with the model's defaults; only prompts and seeds differ."""
    spec = load_catalog()[model]
    rng = np.random.default_rng(seed)
    size = spec.defaults.width, spec.defaults.height
    return [_job(spec, rng, size, spec.defaults.num_inference_steps) for _ in range(num_jobs)]


def _job(
    spec: ModelSpec, rng: np.random.Generator, size: tuple[int, int], num_steps: int
) -> Payload:
    length = spec.defaults.max_sequence_length
    seed = int(rng.integers(NUM_SEEDS))
    return {
        "model": spec.name,
        # scenes come again after some dozens, and embeddings of a repeated prompt are cached
        "prompt": f"{sample_training_scene(rng).caption}, {seed}",
        "width": size[0],
        "height": size[1],
        "num_inference_steps": num_steps,
        "guidance_scale": spec.defaults.guidance_scale,
        **({} if length is None else {"max_sequence_length": length}),
        "seed": seed,
    }


def levels_apart(left: str, right: str) -> int:
    """Return the largest difference between two inline images of one size, in levels of 255."""
    one, other = (np.asarray(_open(data), dtype=int) for data in (left, right))
    return int(np.abs(one - other).max())


def _open(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
