"""Trains flux-kontext-tiny, which gives the shape or the background of an image another colour.

The latents of the image are tokens behind those of the noise, as in FLUX.1 Kontext. All but the
transformer is that of flux-tiny.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from torch.nn import functional

from pixpod.families.flux_kontext import FLUX_KONTEXT
from pixpod_tools.tiny import flux
from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import encode
from pixpod_tools.tiny.layout import forget_where_from
from pixpod_tools.tiny.pretrain import Conditioning
from pixpod_tools.tiny.scenes import Colour, Scene, draw, is_held_out, pick, sample_training_scene
from pixpod_tools.tiny.training import Course, train

NAME, SOURCE = "flux-kontext-tiny", "flux-tiny"
COURSE = Course(minutes=25, learning_rate=1.5e-3, batch_size=48, averaging=0.99)
NUM_LAYERS, NUM_SINGLE_LAYERS = 1, 2
NUM_EDITS = 6_000
BACKGROUND_SHARE = 0.3
"""Share of edits that change the background."""
WITHOUT_IMAGE = 0.15
"""Share of batches with captions in the place of images."""
TEXT_LENGTHS, TEXT_LENGTH_SHARES = (24, 48), (0.6, 0.4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An image before and after an instruction; the scenes differ in one colour."""

    before: Scene
    after: Scene

    @property
    def instruction(self) -> str:
        if self.before.background is self.after.background:
            return f"make it {self.after.colour}"
        return f"make the background {self.after.background}"


def train_kontext(cache: Path, course: Course, init: Path | None = None) -> None:
    """Train a transformer for flux-tiny in the folder `cache`, and put it beside it.

    It continues that in the folder `init`, else begins with blocks of flux-tiny's.
    """
    pipeline = DiffusionPipeline.from_pretrained(cache / SOURCE, dtype=torch.float32)
    transformer = (
        FluxTransformer2DModel.from_pretrained(init, dtype=torch.float32)
        if init
        else _first_blocks(pipeline.transformer)
    )
    rng = np.random.default_rng(course.seed)
    edits = [sample_edit(rng) for _ in range(NUM_EDITS)]
    before = _latents(pipeline, [edit.before for edit in edits])
    after = _latents(pipeline, [edit.after for edit in edits])

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.integers(len(edits), size=course.batch_size)
        if rng.random() < WITHOUT_IMAGE:
            texts, shown = [vary(edits[number].after, rng) for number in chosen], None
        else:
            texts, shown = [edits[number].instruction for number in chosen], before[chosen]
        max_tokens = int(rng.choice(TEXT_LENGTHS, p=TEXT_LENGTH_SHARES))
        with torch.no_grad():
            conditioning = flux.read(pipeline, texts, max_tokens)
        return _loss(transformer, conditioning, after[chosen], shown)

    train(transformer, course, batch_loss)
    publish(transformer, cache)


def sample_edit(rng: np.random.Generator) -> Edit:
    """Return a random edit of one colour, both of whose scenes are in the training data."""
    is_background = rng.random() < BACKGROUND_SHARE
    while True:
        before, colour = sample_training_scene(rng), pick(rng, tuple(Colour))
        if colour in (before.colour, before.background):
            continue
        after = (
            replace(before, background=colour) if is_background else replace(before, colour=colour)
        )
        if not is_held_out(after):
            return Edit(before=before, after=after)


def _first_blocks(whole: FluxTransformer2DModel) -> FluxTransformer2DModel:
    sizes = {"num_layers": NUM_LAYERS, "num_single_layers": NUM_SINGLE_LAYERS}
    small = FluxTransformer2DModel.from_config({**whole.config, **sizes})
    weights = whole.state_dict()
    small.load_state_dict({name: weights[name] for name in small.state_dict()})
    return small


def _latents(pipeline: FluxPipeline, scenes: Sequence[Scene]) -> torch.Tensor:
    """Return packed latents of images, whose shapes lie alike for equal places in the sequence."""
    images = [draw(scene, rng=np.random.default_rng(place)) for place, scene in enumerate(scenes)]
    latents = encode(pipeline.vae, np.stack(images))
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def _loss(
    transformer: FluxTransformer2DModel,
    conditioning: Conditioning,
    clean: torch.Tensor,
    shown: torch.Tensor | None,
) -> torch.Tensor:
    """Return the loss for packed latents of square images, those to generate and those shown."""
    rows, num_tokens, _ = clean.shape
    sequence, pooled = conditioning
    noise, sigma = torch.randn_like(clean), flux.draw_sigmas(rows)
    seen = torch.lerp(clean, noise, sigma[:, None, None])
    side = round(num_tokens**0.5)
    ids = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    if shown is not None:
        seen = torch.cat([seen, shown], dim=1)
        ids = torch.cat([ids, ids + torch.tensor([1.0, 0.0, 0.0])])
    velocity = transformer(
        hidden_states=seen,
        timestep=sigma,
        guidance=1 + 6 * torch.rand(rows),
        pooled_projections=pooled,
        encoder_hidden_states=sequence,
        txt_ids=torch.zeros(sequence.shape[1], 3),
        img_ids=ids,
        return_dict=False,
    )[0]
    return functional.mse_loss(velocity[:, :num_tokens], noise - clean)


def publish(transformer: FluxTransformer2DModel, cache: Path) -> None:
    """Write a checkpoint in bf16 that links to the other parts of flux-tiny.

    A transformer that is there already is replaced.
    """
    out, source = cache / NAME, cache / SOURCE
    out.mkdir(exist_ok=True)
    transformer.to(torch.bfloat16).save_pretrained(out / "transformer")
    forget_where_from(out / "transformer")
    index = json.loads((source / "model_index.json").read_text())
    index["_class_name"] = FLUX_KONTEXT.default_pipeline
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.copytree(source / "scheduler", out / "scheduler", dirs_exist_ok=True)
    for part in source.iterdir():
        link = out / part.name
        if part.is_dir() and not link.exists():
            link.symlink_to(Path("..") / SOURCE / part.name, target_is_directory=True)
