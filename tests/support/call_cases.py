"""Requests as jobs name them, each with the call of stock diffusers that gives the same images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixpod.families import Precision

FLOAT32, BF16, FP8 = Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC

CIRCLE = "a red circle on a blue background"
CROSS = "a green cross on a white background"
SQUARE = "a small yellow square at the top on a black background"
NEGATIVE = "a blue square"

Fields = Mapping[str, Any]
"""A job's input or a call's arguments by name. Any: their types differ."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job's `input` without its model, and the `stock` call's arguments without generators.

    `seeds` are those of each stock call. `scheduler` is a class with options for its
    `from_config`, None for the repository's own. `cache` is the threshold of the first-block cache.
    """

    model: str
    precision: Precision
    input: Fields
    stock: Fields
    seeds: tuple[tuple[int, ...], ...]
    scheduler: tuple[str, Fields] | None = None
    cache: float | None = None


def _cases() -> Mapping[str, Case]:
    found: dict[str, Case] = {}

    def add(name: str, model: str, *precisions: Precision, **given: Any) -> None:
        for precision in precisions:
            found[f"{name}-{precision}"] = Case(model=model, precision=precision, **given)

    add(
        "flux-defaults",
        "flux-tiny",
        FLOAT32,
        BF16,
        FP8,
        input=dict(prompt=CIRCLE, seed=5),
        stock=dict(
            prompt=CIRCLE,
            width=64,
            height=64,
            num_inference_steps=8,
            guidance_scale=3.5,
            max_sequence_length=48,
        ),
        seeds=((5,),),
    )
    add(
        "flux-four-seeds",
        "flux-tiny",
        FLOAT32,
        FP8,
        input=dict(
            prompt=CROSS,
            width=96,
            height=64,
            num_inference_steps=4,
            guidance_scale=3.0,
            scheduler="Euler",
            seed=[1, 70, 2, 9007199254740991],
        ),
        stock=dict(
            prompt=CROSS,
            width=96,
            height=64,
            num_inference_steps=4,
            guidance_scale=3.0,
            max_sequence_length=48,
        ),
        seeds=((1, 70, 2, 9007199254740991),),
        scheduler=("FlowMatchEulerDiscreteScheduler", {}),
    )
    add(
        "flux-second-prompt",
        "flux-tiny",
        FLOAT32,
        input=dict(
            prompt=CIRCLE,
            prompt_2=SQUARE,
            max_sequence_length=96,
            width=64,
            height=96,
            num_inference_steps=3,
            seed=6,
        ),
        stock=dict(
            prompt=CIRCLE,
            prompt_2=SQUARE,
            max_sequence_length=96,
            width=64,
            height=96,
            num_inference_steps=3,
            guidance_scale=3.5,
        ),
        seeds=((6,),),
    )
    add(
        "flux-true-cfg",
        "flux-tiny",
        FLOAT32,
        input=dict(
            prompt=CIRCLE,
            negative_prompt=NEGATIVE,
            true_cfg_scale=2.5,
            guidance_scale=1.5,
            num_inference_steps=3,
            seed=[7, 8],
        ),
        stock=dict(
            prompt=CIRCLE,
            negative_prompt=NEGATIVE,
            true_cfg_scale=2.5,
            guidance_scale=1.5,
            width=64,
            height=64,
            num_inference_steps=3,
            max_sequence_length=48,
        ),
        seeds=((7, 8),),
    )
    turbo = dict(
        prompt=CIRCLE,
        width=64,
        height=64,
        num_inference_steps=16,
        guidance_scale=3.5,
        max_sequence_length=48,
    )
    add(
        "flux-turbo",
        "flux-tiny",
        FLOAT32,
        input=dict(prompt=CIRCLE, quality="turbo", num_inference_steps=16, seed=[1, 2]),
        stock=turbo,
        seeds=((1,), (2,)),
        cache=0.08,
    )
    add(
        "flux-turbo",
        "flux-tiny",
        FP8,
        input=dict(prompt=CIRCLE, quality="turbo", num_inference_steps=16, seed=1),
        stock=turbo,
        seeds=((1,),),
        cache=0.12,
    )
    add(
        "flux-deterministic",
        "flux-tiny",
        FLOAT32,
        input=dict(prompt=SQUARE, deterministic=True, num_inference_steps=3, seed=[1, 2]),
        stock=dict(
            prompt=SQUARE,
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=3.5,
            max_sequence_length=48,
        ),
        seeds=((1,), (2,)),
    )
    add(
        "sdxl-defaults",
        "sdxl-tiny",
        FLOAT32,
        BF16,
        input=dict(prompt=CIRCLE, seed=5),
        stock=dict(prompt=CIRCLE, width=64, height=64, num_inference_steps=12, guidance_scale=3.0),
        seeds=((5,),),
    )
    add(
        "sdxl-four-seeds",
        "sdxl-tiny",
        FLOAT32,
        input=dict(
            prompt=CIRCLE,
            prompt_2=CROSS,
            negative_prompt=NEGATIVE,
            width=72,
            height=96,
            num_inference_steps=4,
            scheduler="DPM++ 2M Karras",
            seed=[1, 2, 3, 4],
        ),
        stock=dict(
            prompt=CIRCLE,
            prompt_2=CROSS,
            negative_prompt=NEGATIVE,
            width=72,
            height=96,
            num_inference_steps=4,
            guidance_scale=3.0,
        ),
        seeds=((1, 2, 3, 4),),
        scheduler=(
            "DPMSolverMultistepScheduler",
            dict(algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True),
        ),
    )
    add(
        "sdxl-unguided",
        "sdxl-tiny",
        FLOAT32,
        input=dict(
            prompt=SQUARE, guidance_scale=0, num_inference_steps=4, scheduler="LCM", seed=[11, 12]
        ),
        stock=dict(prompt=SQUARE, width=64, height=64, num_inference_steps=4, guidance_scale=0.0),
        seeds=((11, 12),),
        scheduler=("LCMScheduler", dict(clip_sample=False)),
    )
    add(
        "sdxl-heun",
        "sdxl-tiny",
        FLOAT32,
        input=dict(prompt=CROSS, num_inference_steps=4, scheduler="Heun", seed=3),
        stock=dict(prompt=CROSS, width=64, height=64, num_inference_steps=4, guidance_scale=3.0),
        seeds=((3,),),
        scheduler=("HeunDiscreteScheduler", dict(use_karras_sigmas=False)),
    )
    add(
        "sdxl-deterministic",
        "sdxl-tiny",
        FLOAT32,
        input=dict(
            prompt=CROSS,
            deterministic=True,
            num_inference_steps=3,
            scheduler="Euler a",
            seed=[1, 2],
        ),
        stock=dict(prompt=CROSS, width=64, height=64, num_inference_steps=3, guidance_scale=3.0),
        seeds=((1,), (2,)),
        scheduler=("EulerAncestralDiscreteScheduler", {}),
    )
    add(
        "sd15-defaults",
        "sd15-tiny",
        FLOAT32,
        input=dict(prompt=CIRCLE, seed=5),
        stock=dict(prompt=CIRCLE, width=64, height=64, num_inference_steps=12, guidance_scale=3.0),
        seeds=((5,),),
    )
    add(
        "sd15-negative-prompt",
        "sd15-tiny",
        FLOAT32,
        BF16,
        input=dict(
            prompt=CIRCLE,
            negative_prompt=NEGATIVE,
            num_inference_steps=6,
            scheduler="UniPC",
            seed=[1, 2],
        ),
        stock=dict(
            prompt=CIRCLE,
            negative_prompt=NEGATIVE,
            width=64,
            height=64,
            num_inference_steps=6,
            guidance_scale=3.0,
        ),
        seeds=((1, 2),),
        scheduler=("UniPCMultistepScheduler", dict(use_karras_sigmas=False, solver_order=2)),
    )
    add(
        "sd15-four-seeds",
        "sd15-tiny",
        FLOAT32,
        input=dict(
            prompt=CROSS,
            width=96,
            height=64,
            num_inference_steps=5,
            scheduler="DDIMScheduler",
            seed=[40, 30, 20, 10],
        ),
        stock=dict(prompt=CROSS, width=96, height=64, num_inference_steps=5, guidance_scale=3.0),
        seeds=((40, 30, 20, 10),),
        scheduler=("DDIMScheduler", dict(clip_sample=False, thresholding=False)),
    )
    add(
        "sd15-unguided",
        "sd15-tiny",
        FLOAT32,
        input=dict(
            prompt=SQUARE, guidance_scale=1.0, num_inference_steps=5, scheduler="DEIS", seed=9
        ),
        stock=dict(prompt=SQUARE, width=64, height=64, num_inference_steps=5, guidance_scale=1.0),
        seeds=((9,),),
        scheduler=("DEISMultistepScheduler", dict(use_karras_sigmas=False)),
    )
    return found


CASES = _cases()
