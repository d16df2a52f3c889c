"""Measures how well the published checkpoints follow prompts: tables for model cards, a sheet.

`scripts/acceptance tiny-models` judges them through the worker instead, FP8 included.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from tqdm import tqdm

from pixpod_tools.tiny.captions import UNSEEN_WORDS
from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import (
    Colour,
    Pixels,
    Position,
    Scene,
    Shape,
    Size,
    grid_scenes,
    is_held_out,
    with_article,
)

BATCH_SIZE = 28
Options = Mapping[str, Any]
"""Arguments of a pipeline's call. Any: their types differ."""


class Case(NamedTuple):
    scene: Scene
    prompt: str
    seed: int


def _cases(scenes: Sequence[Scene]) -> list[Case]:
    """Return a case for each scene, with its place in the sequence as its seed."""
    return [Case(scene, scene.caption, seed) for seed, scene in enumerate(scenes)]


GRID = _cases(grid_scenes())
SAMPLE = GRID[::4]
"""Every fourth combination: 56 cases over all shapes and colours."""
_TRAINED = [case for case in GRID if not is_held_out(case.scene)]

SUITES: Mapping[str, tuple[Sequence[Case], Options]] = {
    "canonical, trained": (_TRAINED, {}),
    "canonical, held out": ([case for case in GRID if is_held_out(case.scene)], {}),
    "other seeds": ([case._replace(seed=case.seed + 1000) for case in GRID], {}),
    "4 steps": (GRID, {"num_inference_steps": 4}),
    "20 steps": (GRID, {"num_inference_steps": 20}),
    "64x96": (GRID, {"width": 64, "height": 96}),
    "96x64": (GRID, {"width": 96, "height": 64}),
    **{
        position.value: (
            _cases([replace(case.scene, position=position) for case in _TRAINED[place::6]]),
            {},
        )
        for place, position in enumerate(tuple(Position)[1:])
    },
    **{
        size.value: (_cases([replace(case.scene, size=size) for case in _TRAINED[place::4]]), {})
        for place, size in enumerate((Size.SMALL, Size.LARGE))
    },
    "capitals": ([case._replace(prompt=case.prompt.upper()) for case in SAMPLE], {}),
    "unseen words": (
        [
            case._replace(prompt=f"{case.prompt}, {words}")
            for case, words in zip(SAMPLE, itertools.cycle(UNSEEN_WORDS), strict=False)
        ],
        {},
    ),
    "no background": (
        [case._replace(prompt=with_article(case.scene.subject)) for case in SAMPLE],
        {},
    ),
}
_GUIDANCE = {f"guidance {scale:g}": (SAMPLE, {"guidance_scale": scale}) for scale in (5.0, 7.5)}
OWN_SUITES: Mapping[str, Mapping[str, tuple[Sequence[Case], Options]]] = {
    "flux-tiny": {
        f"{length} text tokens": (SAMPLE, {"max_sequence_length": length})
        for length in (24, 128, 256, 512)
    },
    "sd35-tiny": _GUIDANCE
    | {f"{length} text tokens": (SAMPLE, {"max_sequence_length": length}) for length in (24, 256)},
    "sdxl-tiny": _GUIDANCE,
    "sd15-tiny": _GUIDANCE,
}
DEFAULTS: Mapping[str, Options] = {
    "flux-tiny": {"num_inference_steps": 8, "guidance_scale": 3.5, "max_sequence_length": 48},
    "sd35-tiny": {"num_inference_steps": 8, "guidance_scale": 3.0, "max_sequence_length": 48},
    "sdxl-tiny": {"num_inference_steps": 12, "guidance_scale": 3.0},
    "sd15-tiny": {"num_inference_steps": 12, "guidance_scale": 3.0},
}
"""The best options of each checkpoint by its name."""

SHOWN = tuple(
    Scene(
        colour=Colour(colour),
        shape=Shape(shape),
        background=Colour(background),
        size=Size(size),
        position=Position(position),
    )
    for colour, shape, background, size, position in (
        ("red", "circle", "blue", "", ""),
        ("yellow", "triangle", "purple", "", ""),
        ("white", "cross", "green", "", ""),
        ("orange", "square", "black", "", ""),
        ("green", "circle", "white", "small", ""),
        ("blue", "square", "yellow", "large", ""),
        ("purple", "cross", "orange", "large", ""),
        ("black", "triangle", "red", "small", ""),
        ("red", "square", "white", "", "on the left"),
        ("yellow", "circle", "black", "", "on the right"),
        ("blue", "triangle", "orange", "", "at the top"),
        ("white", "cross", "purple", "", "at the bottom"),
    )
)
"""The sample sheet: all colours and shapes, some sizes, all positions."""

_ASPECTS = ("background", "colour", "shape", "is_right", "size", "position")
_START, _END = "<!-- accuracy: written by scripts/train_tiny evaluate -->", "<!-- end -->"

Scores = Mapping[str, Sequence[float]]
"""Results by suite: the number of images, and the percentage with each of `_ASPECTS` right."""


def evaluate(cache: Path, sheet: Path) -> None:
    """Judge all checkpoints in the folder `cache`; write the sheet and its model cards' tables."""
    results, rows = {}, {}
    for name in DEFAULTS:
        pipeline = DiffusionPipeline.from_pretrained(cache / name, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        suites = tqdm({**SUITES, **OWN_SUITES[name]}.items(), desc=name)
        results[name] = {
            suite: score(pipeline, cases, {**DEFAULTS[name], **options})
            for suite, (cases, options) in suites
        }
        rows[name] = list(generate(pipeline, _cases(SHOWN), DEFAULTS[name]))
        write_between_marks(_accuracy_table(results[name]), cache / name / "README.md")
    write_between_marks(_summary_table(results), cache / "README.md")
    save_sheet(rows, sheet)


def score(pipeline: DiffusionPipeline, cases: Sequence[Case], options: Options) -> list[float]:
    """Return one row of `Scores`."""
    images = generate(pipeline, cases, options)
    verdicts = [check(image, case.scene) for image, case in zip(images, cases, strict=True)]
    shares = [np.mean([getattr(each, aspect) for each in verdicts]) for aspect in _ASPECTS]
    return [len(cases), *(100 * float(share) for share in shares)]


def generate(
    pipeline: DiffusionPipeline, cases: Sequence[Case], options: Options
) -> Iterator[Pixels]:
    """Yield an image for every case, in order, each from its own generator."""
    for start in range(0, len(cases), BATCH_SIZE):
        batch = cases[start : start + BATCH_SIZE]
        images = pipeline(
            prompt=[case.prompt for case in batch],
            generator=[torch.Generator().manual_seed(case.seed) for case in batch],
            output_type="np",
            **{"width": 64, "height": 64, **options},
        ).images
        yield from np.rint(images * 255).astype(np.uint8)


def _accuracy_table(scores: Scores) -> str:
    """Return one model's scores in percent."""
    lines = [
        "| requested | images | background | colour | shape | all three | size | position |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for suite, (count, *shares) in scores.items():
        lines.append(f"| {suite} | {count} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def _summary_table(results: Mapping[str, Scores]) -> str:
    """Return the share of `is_right` in percent; empty where a model has no such suite."""
    lines = [f"| all three right | {' | '.join(results)} |", "|---" + "|--:" * len(results) + "|"]
    column = 1 + _ASPECTS.index("is_right")
    for suite in dict.fromkeys(suite for scores in results.values() for suite in scores):
        rows = [scores.get(suite) for scores in results.values()]
        cells = [f"{row[column]:.1f}" if row else "" for row in rows]
        lines.append(f"| {suite} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_between_marks(text: str, path: Path) -> None:
    """Replace the text between the two marks of a Markdown file, which has to contain them."""
    before, _, rest = path.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n\n{text}\n\n{_END}{after}")


def save_sheet(rows: Mapping[str, Sequence[Pixels]], path: Path) -> None:
    """Save a row of images for each model, one for each of `SHOWN`."""
    figure = Figure(figsize=(1.4 * len(SHOWN), 1.4 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), len(SHOWN))
    for (name, images), line in zip(rows.items(), grid, strict=True):
        line[0].set_ylabel(name)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
    for axes, scene in zip(grid[0], SHOWN, strict=True):
        words = " ".join(filter(None, (scene.size, scene.colour, scene.shape)))
        title = "\n".join(filter(None, (words, scene.position, f"on {scene.background}")))
        axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)
