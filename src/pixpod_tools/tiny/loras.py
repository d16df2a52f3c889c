"""Trains the tiny LoRAs: a style each, as side paths of the frozen models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline
from torch import nn
from torch.nn import functional

from pixpod.engine.adapters.side_path import SidePath, add_side_paths, can_have_side_path
from pixpod.families import FAMILIES
from pixpod_tools.tiny.captions import vary
from pixpod_tools.tiny.data import Bucket, encode, render_scenes
from pixpod_tools.tiny.flux import draw_sigmas
from pixpod_tools.tiny.styles import Style, add_style
from pixpod_tools.tiny.training import Course, train
from pixpod_tools.tiny.unet import condition_sdxl, draw_timesteps

FOLDER = "loras"
BUCKET = Bucket(width=64, height=64, num_pictures=1_500, share=1.0, seed=11)
COURSE = Course(
    minutes=3,
    learning_rate=4e-3,
    batch_size=16,
    warm_up_steps=20,
    weight_decay=0.0,
    averaging=0.95,
)
TEXT_TOKENS = 48
LESSONS = ("whole", "half", "beside")
LESSON_SHARES = {False: (0.8, 0.2, 0.0), True: (0.35, 0.35, 0.3)}
"""Kinds of batches, and the shares of them without and with a LoRA beside. With `half`, the scale
and the share of the style's colour in the images are a half, so that a scale between 0 and 1 gives
something between. With `beside`, another LoRA is active and its style is in the images.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA to train. `is_whole`: also outside of the usual layers. With `has_text` text encoders
    are trained as well, and the file has the names of kohya's scripts. `beside` is the style of a
    LoRA of this model that was trained before, with which it can be stacked.
    """

    model: str
    style: Style
    rank: int
    minutes: float = COURSE.minutes
    is_whole: bool = False
    has_text: bool = False
    beside: Style | None = None

    @property
    def name(self) -> str:
        return f"{self.model.removesuffix('-tiny')}-{self.style}"


LORAS = (
    Lora(model="flux-tiny", style=Style.FRAME, rank=8),
    Lora(model="flux-tiny", style=Style.BAR, rank=8, minutes=5, beside=Style.FRAME),
    Lora(model="sdxl-tiny", style=Style.FRAME, rank=4, is_whole=True),
    Lora(
        model="sdxl-tiny",
        style=Style.BAR,
        rank=8,
        minutes=10,
        is_whole=True,
        has_text=True,
        beside=Style.FRAME,
    ),
)

Loss = Callable[[torch.Tensor, list[str]], torch.Tensor]
"""Returns the loss for clean latents and their captions."""


def train_lora(lora: Lora, cache: Path, course: Course) -> None:
    """Train a LoRA for a published checkpoint in the folder `cache`, and write it there."""
    pipeline = DiffusionPipeline.from_pretrained(cache / lora.model, dtype=torch.float32)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    pictures, scenes = render_scenes(BUCKET)
    styled = {
        "whole": add_style(pictures, lora.style),
        "half": add_style(pictures, lora.style, 0.5),
    }
    others: dict[str, torch.Tensor] = {}
    if lora.beside is not None:
        styled["beside"] = add_style(styled["whole"], lora.beside)
        others = _load(cache, replace(lora, style=lora.beside))
    latents = {lesson: encode(pipeline.vae, each) for lesson, each in styled.items()}
    paths = {
        name: _TrainedPath(
            path, others.get(f"{name}.lora_A.weight"), others.get(f"{name}.lora_B.weight")
        )
        for name, path in _add_paths(pipeline, lora)
    }
    is_flux = isinstance(pipeline, FluxPipeline)
    loss = _flux_loss(pipeline) if is_flux else _sdxl_loss(pipeline)

    def batch_loss(rng: np.random.Generator) -> torch.Tensor:
        lesson = str(rng.choice(LESSONS, p=LESSON_SHARES[lora.beside is not None]))
        for path in paths.values():
            path.use(0.5 if lesson == "half" else 1.0, with_other=lesson == "beside")
        chosen = rng.integers(len(scenes), size=course.batch_size)
        captions = [vary(scenes[index], rng) for index in chosen]
        return loss(latents[lesson][torch.from_numpy(chosen)], captions)

    train(nn.ModuleList(paths.values()), course, batch_loss)
    (cache / FOLDER).mkdir(exist_ok=True)
    tensors = _kohya_names(paths) if lora.has_text else _diffusers_names(paths)
    stored = {name: each.detach().to(torch.bfloat16).contiguous() for name, each in tensors}
    safetensors.torch.save_file(
        stored, cache / FOLDER / f"{lora.name}.safetensors", metadata={"format": "pt"}
    )


class _TrainedPath(nn.Module):
    """Parameters in the slots of a side path of one row: a random start, without effect yet.

    `other_down` and `other_up` are those of another LoRA, None if it does not have this layer.
    """

    def __init__(
        self, path: SidePath, other_down: torch.Tensor | None, other_up: torch.Tensor | None
    ) -> None:
        super().__init__()
        self._other = None
        if other_down is not None and other_up is not None:
            self._other = (other_down[None], other_up.flatten(1)[None])
        self.down = nn.Parameter(torch.randn_like(path.down) / path.down[0, 0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros_like(path.up))
        self._slots = (path,)  # no submodule: the layer itself is not trained

    def use(self, scale: float, *, with_other: bool) -> None:
        """Put the parameters into the slots, beside those of the other LoRA or without them."""
        (path,) = self._slots
        path.down, path.up = self.down + 0, self.up * scale
        if with_other and self._other is not None:
            down, up = self._other
            path.down = torch.cat([path.down, down], dim=1)
            path.up = torch.cat([path.up, up], dim=2)


def _load(cache: Path, lora: Lora) -> dict[str, torch.Tensor]:
    path = cache / FOLDER / f"{lora.name}.safetensors"
    return {name: each.float() for name, each in safetensors.torch.load_file(path).items()}


def _add_paths(pipeline: DiffusionPipeline, lora: Lora) -> Iterator[tuple[str, SidePath]]:
    """Yield side paths that can be trained by the full names of their layers."""
    is_flux = isinstance(pipeline, FluxPipeline)
    family = FAMILIES["flux" if is_flux else "sdxl"]
    assert family.lora is not None
    encoders = family.text_encoders if lora.has_text else ()
    for component in (family.denoiser, *encoders):
        module = getattr(pipeline, component)
        names = [
            name
            for name, layer in module.named_modules()
            if can_have_side_path(layer)
            and (component in encoders or lora.is_whole or family.lora.is_usual(name))
        ]
        for name, path in add_side_paths(module, names, lora.rank, 1).items():
            yield f"{component}.{name}", path


def _flux_loss(pipeline: FluxPipeline) -> Loss:
    def loss(latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        with torch.no_grad():
            sequence, pooled, _ = pipeline.encode_prompt(
                captions, None, device="cpu", max_sequence_length=TEXT_TOKENS
            )
        clean = FluxPipeline._pack_latents(latents, *latents.shape)
        noise = torch.randn_like(clean)
        sigma = draw_sigmas(len(latents))
        weight = sigma[:, None, None]
        velocity = pipeline.transformer(
            hidden_states=(1 - weight) * clean + weight * noise,
            timestep=sigma,
            guidance=torch.full((len(latents),), 3.5),
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(TEXT_TOKENS, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                1,
                latents.shape[-2] // 2,
                latents.shape[-1] // 2,
                torch.device("cpu"),
                torch.float32,
            ),
            return_dict=False,
        )[0]
        return functional.mse_loss(velocity, noise - clean)

    return loss


def _sdxl_loss(pipeline: DiffusionPipeline) -> Loss:
    alphas = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod

    def loss(latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        conditioning = condition_sdxl(pipeline, captions, BUCKET)
        timesteps = draw_timesteps(len(latents))
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return functional.mse_loss(pipeline.unet(noisy, timesteps, **conditioning).sample, velocity)

    return loss


def _diffusers_names(paths: Mapping[str, _TrainedPath]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, path in paths.items():
        yield f"{name}.lora_A.weight", path.down[0]
        up = path.up[0]
        yield f"{name}.lora_B.weight", up[..., None, None] if path.down.ndim == 5 else up


_KOHYA_LAYERS = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Layers of SDXL's UNet that kohya's scripts know under their first names only."""


def _kohya_names(paths: Mapping[str, _TrainedPath]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors as kohya's scripts name them, with an alpha of half of the rank."""
    for name, path in paths.items():
        component, _, layer = name.partition(".")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
        if component != "unet" and layer.startswith("encoder."):
            layer = f"text_model.{layer}"
        layer = _KOHYA_LAYERS.get(layer, layer)
        named = f"{prefix[component]}_{layer.replace('.', '_')}"
        up = path.up[0] * 2
        yield f"{named}.lora_down.weight", path.down[0]
        yield f"{named}.lora_up.weight", up[..., None, None] if path.down.ndim == 5 else up
        yield f"{named}.alpha", torch.tensor(path.up.shape[-1] / 2)
