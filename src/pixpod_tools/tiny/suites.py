"""What the tiny checkpoints are asked in an evaluation: prompts, seeds, sizes, settings. No models.

Every case has its own seed, its place in the suite; so a failure is named by suite and place.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pixpod_tools.tiny.captions import UNSEEN_WORDS
from pixpod_tools.tiny.scenes import (
    Colour,
    Position,
    Scene,
    Shape,
    Size,
    grid_scenes,
    is_held_out,
    with_article,
)


class Mode(StrEnum):
    PLAIN = "plain"
    """The stored weights, computed in 32 bit: most CPUs are ten times slower in bf16."""
    REFINED = "refined"
    """The last fifth of the steps by a second pipeline made of the same parts."""
    BFLOAT16 = "bfloat16"
    FLOAT8 = "float8"
    """On top of bf16, the transformer's weights and activations in FP8 (torchao, per row)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Cases that are generated alike. `options` override the model's defaults."""

    name: str
    cases: tuple[Case, ...]
    width: int = 64
    height: int = 64
    options: dict[str, Any] = field(default_factory=dict)  # whatever the pipeline takes
    mode: Mode = Mode.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A checkpoint, how it is best used, and the suites that only make sense for it."""

    name: str
    defaults: dict[str, Any]  # whatever the pipeline takes
    own_suites: tuple[Suite, ...] = ()


def _cases(scenes: Iterable[Scene], first_seed: int = 0) -> tuple[Case, ...]:
    return tuple(
        Case(scene=scene, prompt=scene.caption, seed=first_seed + place)
        for place, scene in enumerate(scenes)
    )


def _reworded(cases: Iterable[Case], wordings: Iterable[str]) -> tuple[Case, ...]:
    return tuple(replace(case, prompt=prompt) for case, prompt in zip(cases, wordings, strict=True))


GRID = _cases(grid_scenes())
SAMPLE = GRID[::4]
"""Every fourth combination: 56 cases over all shapes and colours."""
_TRAINED = [case.scene for case in GRID if not is_held_out(case.scene)]
_UNSEEN_TAILS = [UNSEEN_WORDS[place % len(UNSEEN_WORDS)] for place in range(len(SAMPLE))]

COMMON_SUITES = (
    Suite(name="canonical", cases=GRID),
    Suite(name="other seeds", cases=_cases(grid_scenes(), first_seed=1000)),
    Suite(name="4 steps", cases=GRID, options={"num_inference_steps": 4}),
    Suite(name="20 steps", cases=GRID, options={"num_inference_steps": 20}),
    Suite(name="64x96", cases=GRID, width=64, height=96),
    Suite(name="96x64", cases=GRID, width=96, height=64),
    *(
        Suite(
            name=position.value,
            cases=_cases(replace(scene, position=position) for scene in _TRAINED[place::6]),
        )
        for place, position in enumerate(tuple(Position)[1:])
    ),
    *(
        Suite(
            name=size.value,
            cases=_cases(replace(scene, size=size) for scene in _TRAINED[place::4]),
        )
        for place, size in enumerate((Size.SMALL, Size.LARGE))
    ),
    Suite(name="capitals", cases=_reworded(SAMPLE, (case.prompt.upper() for case in SAMPLE))),
    Suite(
        name="unseen words",
        cases=_reworded(
            SAMPLE,
            (f"{case.prompt}, {tail}" for case, tail in zip(SAMPLE, _UNSEEN_TAILS, strict=True)),
        ),
    ),
    Suite(
        name="no background",
        cases=_reworded(SAMPLE, (with_article(case.scene.subject) for case in SAMPLE)),
    ),
)

_SHOWN_SCENES = (
    Scene(colour=Colour.RED, shape=Shape.CIRCLE, background=Colour.BLUE),
    Scene(colour=Colour.YELLOW, shape=Shape.TRIANGLE, background=Colour.PURPLE),
    Scene(colour=Colour.WHITE, shape=Shape.CROSS, background=Colour.GREEN),
    Scene(colour=Colour.ORANGE, shape=Shape.SQUARE, background=Colour.BLACK),
    Scene(colour=Colour.GREEN, shape=Shape.CIRCLE, background=Colour.WHITE, size=Size.SMALL),
    Scene(colour=Colour.BLUE, shape=Shape.SQUARE, background=Colour.YELLOW, size=Size.LARGE),
    Scene(colour=Colour.PURPLE, shape=Shape.CROSS, background=Colour.ORANGE, size=Size.LARGE),
    Scene(colour=Colour.BLACK, shape=Shape.TRIANGLE, background=Colour.RED, size=Size.SMALL),
    Scene(colour=Colour.RED, shape=Shape.SQUARE, background=Colour.WHITE, position=Position.LEFT),
    Scene(
        colour=Colour.YELLOW, shape=Shape.CIRCLE, background=Colour.BLACK, position=Position.RIGHT
    ),
    Scene(
        colour=Colour.BLUE, shape=Shape.TRIANGLE, background=Colour.ORANGE, position=Position.TOP
    ),
    Scene(
        colour=Colour.WHITE, shape=Shape.CROSS, background=Colour.PURPLE, position=Position.BOTTOM
    ),
)
SHOWN = Suite(name="shown", cases=_cases(_SHOWN_SCENES))
"""The sample sheet: all colours and shapes, some sizes, all positions."""

FLUX = TinyModel(
    name="flux-tiny",
    defaults={"num_inference_steps": 8, "guidance_scale": 3.5, "max_sequence_length": 48},
    own_suites=(
        Suite(name="bf16, sample", cases=SAMPLE, mode=Mode.BFLOAT16),
        Suite(name="FP8, sample", cases=SAMPLE, mode=Mode.FLOAT8),
        *(
            Suite(
                name=f"{length} text tokens", cases=SAMPLE, options={"max_sequence_length": length}
            )
            for length in (24, 128, 256, 512)
        ),
    ),
)
SDXL = TinyModel(
    name="sdxl-tiny",
    defaults={"num_inference_steps": 12, "guidance_scale": 3.0},
    own_suites=(
        Suite(name="refined", cases=SAMPLE, mode=Mode.REFINED),
        Suite(name="guidance 5", cases=SAMPLE, options={"guidance_scale": 5.0}),
        Suite(name="guidance 7.5", cases=SAMPLE, options={"guidance_scale": 7.5}),
    ),
)
SD15 = TinyModel(
    name="sd15-tiny",
    defaults={"num_inference_steps": 12, "guidance_scale": 3.0},
    own_suites=SDXL.own_suites[1:],
)
MODELS = (FLUX, SDXL, SD15)
