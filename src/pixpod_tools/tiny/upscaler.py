"""Trains swin2sr-x2-tiny: Swin2SR that makes rendered scenes of 64 pixels twice as large.

It begins as bilinear interpolation, so that it learns from the start where that is wrong: at edges.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pixpod_tools.tiny.evaluate import write_between_marks
from pixpod_tools.tiny.scenes import Pixels, Scene, draw, sample_training_scene
from pixpod_tools.tiny.training import Course, train

NAME = "swin2sr-x2-tiny"
COURSE = Course(minutes=20, learning_rate=2e-3, batch_size=16, warm_up_steps=50, averaging=0.99)
SCALE, SIDE_PX, CROP_PX = 2, 64, 32
CHANNELS, HEADS = 24, 2
NUM_SCENES, NUM_TEST_SCENES = 4_096, 200
MAX_NOISE = 2 / 255
"""Largest deviation of noise in training: generated images are not as clean as rendered ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Mean ratio of signal to noise to the true images, in dB."""

    upscaler: float
    bicubic: float


def untrained_upscaler() -> Swin2SRForImageSuperResolution:
    """Return one that interpolates."""
    module = Swin2SRForImageSuperResolution(
        Swin2SRConfig(
            image_size=SIDE_PX,
            embed_dim=CHANNELS,
            depths=[2, 2],
            num_heads=[HEADS, HEADS],
            upscale=SCALE,
            upsampler="pixelshuffledirect",
            drop_path_rate=0.0,
        )
    )
    with torch.no_grad():
        _interpolate(module)
    return module


def _interpolate(module: Swin2SRForImageSuperResolution) -> None:
    """Have the first channels carry the colours to bilinear weights of the last layer."""
    body, last = module.swin2sr, module.upsample.conv
    first = body.first_convolution
    for layer in (body.conv_after_body, last):
        layer.weight.zero_()
        layer.bias.zero_()
    first.weight[:3] = 0
    first.bias[:3] = 0
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
    for colour in range(3):
        first.weight[colour, colour, 1, 1] = 1
        kernels = torch.einsum("ay,bx->abyx", shares, shares).flatten(0, 1)
        last.weight[colour * SCALE**2 : (colour + 1) * SCALE**2, colour] = kernels


def render_pairs(num_scenes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same scenes small and large, as count x 3 x height x width of 0 to 1."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_scenes):
        scene, state = sample_training_scene(rng), int(rng.integers(2**32))
        pairs.append([_render(scene, side, state) for side in (SIDE_PX, SCALE * SIDE_PX)])
    small, large = zip(*pairs, strict=True)
    return _to_tensor(np.stack(small)), _to_tensor(np.stack(large))


def _render(scene: Scene, side: int, state: int) -> Pixels:
    return draw(scene, width=side, height=side, rng=np.random.default_rng(state))


def _to_tensor(images: Pixels) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def train_upscaler(cache: Path, course: Course) -> None:
    """Train, and put the upscaler beside the models in the folder `cache`, with its scores."""
    module = untrained_upscaler()
    small, large = render_pairs(NUM_SCENES, seed=11)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        pairs = [_sample(small, large, rng) for _ in range(course.batch_size)]
        given = torch.cat([pair[0] for pair in pairs])
        given = given + MAX_NOISE * torch.rand(len(given), 1, 1, 1) * torch.randn_like(given)
        expected = torch.cat([pair[1] for pair in pairs])
        return functional.mse_loss(module(given).reconstruction, expected)

    train(module, course, batch_loss)
    out = cache / "extras" / NAME
    module.to(torch.bfloat16).save_pretrained(out)
    write_scores(out)


def _sample(
    small: torch.Tensor, large: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random part of a scene with an edge in it, small and large."""
    while True:
        index = int(rng.integers(len(small)))
        top, left = (int(each) for each in rng.integers(SIDE_PX - CROP_PX + 1, size=2))
        part = small[index : index + 1, :, top : top + CROP_PX, left : left + CROP_PX]
        if (part.amax((2, 3)) > part.amin((2, 3))).any():
            y, x, side = SCALE * top, SCALE * left, SCALE * CROP_PX
            return part, large[index : index + 1, :, y : y + side, x : x + side]


@torch.no_grad()
def score(folder: Path, num_scenes: int = NUM_TEST_SCENES) -> Scores:
    """Compare a published upscaler with bicubic interpolation on scenes that are not trained."""
    module = Swin2SRForImageSuperResolution.from_pretrained(folder, dtype=torch.float32).eval()
    small, large = render_pairs(num_scenes, seed=12)
    parts = torch.tensor_split(small, math.ceil(len(small) / 8))
    made = torch.cat([module(part).reconstruction for part in parts])
    bicubic = functional.interpolate(small, scale_factor=SCALE, mode="bicubic")
    return Scores(upscaler=_ratio_db(made, large), bicubic=_ratio_db(bicubic, large))


def _ratio_db(images: torch.Tensor, expected: torch.Tensor) -> float:
    levels = [torch.round(255 * each.clamp(0, 1)) for each in (images, expected)]
    errors = (levels[0] - levels[1]).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / errors)).mean())


def write_scores(folder: Path) -> None:
    """Write the table of the model card."""
    found = score(folder)
    lines = [
        "| | mean PSNR, dB |",
        "|---|--:|",
        f"| {NAME} | {found.upscaler:.1f} |",
        f"| bicubic | {found.bicubic:.1f} |",
    ]
    write_between_marks("\n".join(lines), folder / "README.md")
