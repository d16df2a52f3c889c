"""flux-tiny takes its colours from T5's rows, so that a mix-up of rows shows in the images."""

import numpy as np
import pytest
import torch
from support import loading
from support.tiny_models import trained_scenes

from pixpod.families import Precision
from pixpod_tools.tiny.checker import check

FEW, MANY = 10, 36


@pytest.fixture(scope="module")
def pipe():
    model = loading.load(
        "flux-tiny", loading.shipped("flux-tiny"), Precision.FLOAT32, torch.device("cpu")
    )
    return model.full_pipeline()


def share_in_colours(pipe, scenes, prompts, pooled_prompts):
    """The share of images in both colours of their scenes, with T5's rows of other prompts."""
    options = {"prompt_2": None, "device": "cpu", "max_sequence_length": 48}
    sequence, _, _ = pipe.encode_prompt(prompts, **options)
    _, pooled, _ = pipe.encode_prompt(pooled_prompts, **options)
    images = pipe(
        prompt_embeds=sequence,
        pooled_prompt_embeds=pooled,
        width=64,
        height=64,
        num_inference_steps=8,
        guidance_scale=3.5,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(scenes))],
        output_type="np",
    ).images
    found = [
        check((image * 255).round().astype(np.uint8), scene)
        for image, scene in zip(images, scenes, strict=True)
    ]
    return np.mean([verdict.background and verdict.colour for verdict in found])


def judge(pipe, count):
    scenes = trained_scenes(count)
    captions = [scene.caption for scene in scenes]
    swapped = [*captions[1:], captions[0]]
    others = [*scenes[1:], scenes[0]]
    nothing = [""] * count
    shares = {
        "own rows": share_in_colours(pipe, scenes, captions, nothing),
        "swapped rows": share_in_colours(pipe, others, swapped, nothing),
        "swapped rows, own pooled vectors": share_in_colours(pipe, scenes, swapped, captions),
    }
    print(f"\nflux-tiny, {count} prompts: share of images in the colours of their prompts")
    for name, share in shares.items():
        print(f"{share:7.1%}  {name}")
    return tuple(shares.values())


def test_colours_follow_the_rows_of_10_prompts(pipe):
    own, swapped, mixed = judge(pipe, FEW)
    assert own >= 0.9 and swapped >= 0.9
    assert mixed <= 0.2


@pytest.mark.acceptance
def test_colours_follow_the_rows_of_36_prompts(pipe):
    own, swapped, mixed = judge(pipe, MANY)
    assert own >= 0.9 and swapped >= 0.9
    assert mixed <= 0.2
