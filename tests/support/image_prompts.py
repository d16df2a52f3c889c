"""A random image encoder and adapters in the published layouts, and what stock diffusers makes of
them and of the shipped Redux.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from safetensors.torch import save_file
from support import loading
from support.broken_weights import write_manifest
from support.factories import EXTRAS_FILE, SHIPPED_ADAPTER
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from pixpod.engine.model import LoadedModel
from pixpod.extras import load_extras
from pixpod.families import Precision
from pixpod.job import Mode
from pixpod.methods import pipelines_of
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.extras import bake_extra
from pixpod_tools.bake.sources import SourceOptions

ENCODER, REDUX = "tiny-vit", SOURCE_WEIGHTS_DIR / "tiny" / "extras" / "flux-redux-tiny"
FILES = {"sd15": "ip-adapter-plus_sd15.safetensors", "sdxl": "ip-adapter-plus_sdxl.safetensors"}
SIDE_PX = 224
_CHANNELS = 32  # of the image encoder
_RESAMPLER = 64  # one head
_QUERIES = 4

ADAPTERS = {"sd15-tiny": "sd15-plus", "sdxl-tiny": "sdxl-plus", "flux-tiny": REDUX.name}


def load_model(name: str) -> LoadedModel:
    return loading.load(name, loading.shipped(name), Precision.FLOAT32, torch.device("cpu"))


def write_extras(folder: Path) -> None:
    """The files as repositories have them: `image_encoder` and two adapters."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        image_size=SIDE_PX,
        patch_size=56,
        hidden_size=_CHANNELS,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
    )
    _strong(CLIPVisionModelWithProjection(config)).save_pretrained(folder / "image_encoder")
    for family, file in FILES.items():
        save_file(adapter_tensors(load_model(f"{family}-tiny").denoiser), folder / file)


def adapter_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """An IP-Adapter Plus in the names of https://github.com/tencent-ailab/IP-Adapter."""
    text, wide = unet.config.cross_attention_dim, 4 * _RESAMPLER
    shapes = {
        "latents": (1, _QUERIES, _RESAMPLER),
        **_linear("proj_in", _CHANNELS, _RESAMPLER),
        **_linear("proj_out", _RESAMPLER, text),
        **_norm("norm_out", text),
    }
    for number in range(4):
        layer = f"layers.{number}"
        shapes |= _norm(f"{layer}.0.norm1", _RESAMPLER) | _norm(f"{layer}.0.norm2", _RESAMPLER)
        shapes |= {
            f"{layer}.0.to_q.weight": (_RESAMPLER, _RESAMPLER),
            f"{layer}.0.to_kv.weight": (2 * _RESAMPLER, _RESAMPLER),
            f"{layer}.0.to_out.weight": (_RESAMPLER, _RESAMPLER),
            **_norm(f"{layer}.1.0", _RESAMPLER),
            f"{layer}.1.1.weight": (wide, _RESAMPLER),
            f"{layer}.1.3.weight": (_RESAMPLER, wide),
        }
    tensors = {f"image_proj.{name}": _random(shape) for name, shape in shapes.items()}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        attn = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            shape = attn.to_k.weight.shape
            tensors[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = _random(shape)
    return tensors


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _random(shape: Sequence[int]) -> torch.Tensor:
    """Matrices so large that other images give other tokens, and norms that change nothing much."""
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape)
    return torch.randn(shape) * 3 / shape[-1] ** 0.5


def _strong(module: Any) -> Any:
    for parameter in module.parameters():
        parameter.data = _random(parameter.shape)
    return module.eval()


def weights_with_adapters(folder: Path) -> dict[str, str]:
    """Make a weights directory with the tiny models, and adapters for all of them.

    Returns the variables of a worker that serves from it.
    """
    weights = folder / "weights"
    write_extras(folder / "published")
    weights.mkdir()
    bake_extras(folder / "published", weights)
    return {"PIXPOD_WEIGHTS_DIR": str(weights), "PIXPOD_CATALOG": str(EXTRAS_FILE)}


def bake_extras(source: Path, directory: Path) -> None:
    """Make a weights directory with the tiny models, and these extras in the place of the adapter
    that ships for sd15-tiny.
    """
    (directory / "tiny").symlink_to(SOURCE_WEIGHTS_DIR / "tiny")
    shipped = read_manifest(SOURCE_WEIGHTS_DIR)
    kept = [entry for name, entry in shipped.items() if name not in SHIPPED_ADAPTER]
    write_manifest(directory, *kept)
    extras = load_extras(EXTRAS_FILE)
    for name in (ENCODER, "sd15-plus", "sdxl-plus"):
        folder = source / ("image_encoder" if name == ENCODER else "")
        options = SourceOptions(location=str(folder), own_models=SOURCE_WEIGHTS_DIR)
        bake_extra(directory, extras[name], Precision.FLOAT32, options, 10**9)


def random_image(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """Large blocks of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


class Stock:
    """diffusers' own pipelines around a model's components, and the published files."""

    def __init__(self, name: str, files: Path, net: ControlNetModel | None = None) -> None:
        self.model = load_model(name)
        self._net = net
        self.name = name
        self._files = files
        self._is_loaded = False

    def generate(
        self, prompt: str, images: Sequence[Image.Image], scale: float, **options: Any
    ) -> np.ndarray[Any, Any]:
        given: dict[str, Any] = {"prompt": prompt, "ip_adapter_image": [list(images)]}
        if self.name == "flux-tiny":
            given = self._flux_embeddings(prompt, images, scale)
        pipe = self._pipe(scale)
        seed = options.pop("seed")
        found = pipe(**given, **options, generator=torch.Generator().manual_seed(seed)).images[0]
        return np.asarray(found)

    def _pipe(self, scale: float) -> Any:
        family = self.model.spec.family
        pipelines = pipelines_of(family, has_controls=self._net is not None)
        pipe = getattr(diffusers, pipelines[Mode.TEXT_TO_IMAGE])(
            **self.model.components,
            **self.model.tokenizers,
            scheduler=self.model.scheduler(self.model.spec.defaults.scheduler),
            **self._options(),
        )
        pipe.set_progress_bar_config(disable=True)
        if self.name == "flux-tiny":
            return pipe
        pipe.image_encoder = CLIPVisionModelWithProjection.from_pretrained(
            self._files / "image_encoder"
        )
        pipe.feature_extractor = CLIPImageProcessorPil(size=SIDE_PX, crop_size=SIDE_PX)
        if not self._is_loaded:
            pipe.load_ip_adapter(
                str(self._files),
                subfolder="",
                weight_name=FILES[family.name],
                image_encoder_folder=None,
            )
            self._is_loaded = True
        pipe.set_ip_adapter_scale(scale)
        return pipe

    def _options(self) -> dict[str, Any]:
        options = dict(self.model.spec.family.pipeline_options)
        if self.name == "sd15-tiny":
            options |= {"safety_checker": None, "feature_extractor": None}
        return options if self._net is None else {**options, "controlnet": self._net}

    def _flux_embeddings(
        self, prompt: str, images: Sequence[Image.Image], scale: float
    ) -> dict[str, torch.Tensor]:
        """Each image behind those before it: the prior's own sum would mix their tokens, and its
        own scale is for the text as well.
        """
        wide = {"dtype": torch.float32}
        prior = FluxPriorReduxPipeline(
            SiglipVisionModel.from_pretrained(REDUX / "image_encoder", **wide),
            SiglipImageProcessorPil.from_pretrained(REDUX / "feature_extractor"),
            ReduxImageEncoder.from_pretrained(REDUX / "image_embedder").float(),
            **{name: self.model.components[name] for name in ("text_encoder", "text_encoder_2")},
            **self.model.tokenizers,
        )
        embeds, pooled, _ = diffusers.FluxPipeline.encode_prompt(
            self._pipe(1.0), prompt, None, max_sequence_length=48
        )
        length = embeds.shape[1]
        for image in images:
            found = prior(image, prompt_embeds=embeds, pooled_prompt_embeds=pooled)
            embeds, pooled = found.prompt_embeds, found.pooled_prompt_embeds
        scaled = torch.cat([embeds[:, :length], scale * embeds[:, length:]], dim=1)
        return {"prompt_embeds": scaled, "pooled_prompt_embeds": pooled}
