"""Measures the nets of `model_cache/tiny/extras` with stock pipelines, for their model cards."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline

from pixpod.families import FAMILIES
from pixpod.job import Mode
from pixpod_tools.tiny.control_scores import ControlScores, control_cases, score_controls
from pixpod_tools.tiny.controls import CONTROLS, without_shape
from pixpod_tools.tiny.evaluate import DEFAULTS, write_between_marks
from pixpod_tools.tiny.extras import FOLDER, NETS
from pixpod_tools.tiny.scenes import Pixels, Scene, draw

BATCH_SIZE = 20
SCALES = (1.0, 0.5, 0.0)

_FAMILIES = {"sdxl-tiny": "sdxl", "sd15-tiny": "sd15", "flux-tiny": "flux"}


def evaluate_nets(cache: Path) -> None:
    """Write the tables of all model cards of nets in the folder `cache`."""
    for name in NETS:
        folder = cache / FOLDER / name
        if folder.exists():
            write_between_marks(_table(dict(_scores(cache, name))), folder / "README.md")


def _scores(cache: Path, name: str) -> Iterator[tuple[float, ControlScores]]:
    net = NETS[name]
    family = FAMILIES[_FAMILIES[net.model]]
    assert family.controlnet is not None
    net_class = getattr(diffusers, family.controlnet.class_name)
    pipeline_class = getattr(diffusers, family.controlnet.pipelines[Mode.TEXT_TO_IMAGE])
    base = DiffusionPipeline.from_pretrained(cache / net.model, dtype=torch.float32)
    pipeline = pipeline_class(
        **base.components,
        **family.pipeline_options,
        controlnet=net_class.from_pretrained(cache / FOLDER / name, dtype=torch.float32),
    )
    pipeline.set_progress_bar_config(disable=True)
    scenes = control_cases()
    given = [draw(scene) for scene in scenes]
    controls = [CONTROLS[net.type](*pair) for pair in zip(given, scenes, strict=True)]
    options = DEFAULTS[net.model]
    for scale in SCALES:
        images = list(_generate(pipeline, scenes, controls, {**options, **_scaled(scale)}))
        yield scale, score_controls(images, given, scenes)


def _scaled(scale: float) -> Mapping[str, Any]:
    return {"controlnet_conditioning_scale": scale}


def _generate(
    pipeline: Any,  # noqa: ANN401 - diffusers has no types
    scenes: Sequence[Scene],
    controls: Sequence[Pixels],
    options: Mapping[str, Any],
) -> Iterator[Pixels]:
    is_flux = isinstance(pipeline, diffusers.FluxControlNetPipeline)
    for start in range(0, len(scenes), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(scenes)))
        pixels = torch.from_numpy(np.stack([controls[row] for row in rows])).permute(0, 3, 1, 2)
        image = pixels.float() / 255
        control = {"control_image": 2 * image - 1} if is_flux else {"image": image}
        images = pipeline(
            [without_shape(scenes[row]) for row in rows],
            generator=[torch.Generator().manual_seed(row) for row in rows],
            width=64,
            height=64,
            output_type="np",
            **control,
            **options,
        ).images
        yield from np.rint(images * 255).astype(np.uint8)


def _table(scores: Mapping[float, ControlScores]) -> str:
    lines = [
        "| scale | mean IoU with the given shape | shape | position | both colours |",
        "|--:|--:|--:|--:|--:|",
    ]
    for scale, found in scores.items():
        shares = (found.shape, found.position, found.colours)
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        lines.append(f"| {scale:g} | {found.overlap:.2f} | {cells} |")
    return "\n".join(lines)
