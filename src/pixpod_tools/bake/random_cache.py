"""Models of full size with random weights, in the layout of baked ones: for benchmarks.

How long reading, binding and drawing take does not depend on what the weights are. One block of
random numbers is made and written over and over, each tensor beginning at another place.
"""

import math
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch

from pixpod.catalog import Family
from pixpod.errors import InvalidSettings
from pixpod.weights.layout import PIPELINE_CLASS
from pixpod_tools.bake.architectures import ARCHITECTURES, Architecture, Config
from pixpod_tools.bake.character_tokenizers import clip_tokenizer, t5_tokenizer
from pixpod_tools.bake.components import Component, plan_component
from pixpod_tools.bake.layout import write_component, write_json
from pixpod_tools.bake.recipes import ModelRecipe, storage_of
from pixpod_tools.bake.shards import PlannedTensor, Progress

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""

_POOL_ELEMENTS = 1 << 25
_FLOAT8_STD = 112.0
"""A quarter of the largest float8_e4m3fn, so that hardly any number is cut off and none is NaN."""

_SINGLE_BLOCKS = 38
_DOUBLE_PER_SINGLE = 19 / 38
_T5_PER_SINGLE = 24 / 38

_TEXT_ENCODERS: Mapping[Family, Mapping[str, str]] = {
    Family.FLUX: {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
    Family.SDXL: {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    Family.SD15: {"text_encoder": "CLIPTextModel"},
}
_DENOISER_CLASS: Mapping[Family, str] = {
    Family.FLUX: "FluxTransformer2DModel",
    Family.SDXL: "UNet2DConditionModel",
    Family.SD15: "UNet2DConditionModel",
}
_SCHEDULER: Mapping[Family, str] = {
    Family.FLUX: "FlowMatchEulerDiscreteScheduler",
    Family.SDXL: "EulerDiscreteScheduler",
    Family.SD15: "EulerDiscreteScheduler",
}


def find_architecture(name: str, size_bytes: int | None) -> Architecture:
    """The architecture of a catalog's model, with fewer FLUX and T5 blocks for a smaller total.

    Raises InvalidSettings for a name without one, or a size for a model that has no such blocks.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InvalidSettings(f"--random {name}: accepted are {known}")
    architecture = ARCHITECTURES[name]
    if size_bytes is None:
        return architecture
    if architecture.denoiser.get("num_single_layers") != _SINGLE_BLOCKS:
        raise InvalidSettings(f"--size-gb with {name}: accepted for full-size FLUX models only")
    return architecture


def plan_model(
    architecture: Architecture, recipe: ModelRecipe, size_bytes: int | None = None
) -> tuple[Component, ...]:
    """The components in the order of a boot; `size_bytes` is what they should come to, about."""
    if size_bytes is None:
        return _plan(architecture, recipe)

    def planned(num_single: int) -> tuple[Component, ...]:
        return _plan(_with_blocks(architecture, num_single), recipe)

    def total(num_single: int) -> int:
        return sum(component.size_bytes for component in planned(num_single))

    upper = bisect_left(range(_SINGLE_BLOCKS), size_bytes, lo=1, key=total)
    nearest = min(range(max(1, upper - 1), upper + 1), key=lambda n: abs(total(n) - size_bytes))
    return planned(nearest)


def write_random_model(
    folder: Path,
    architecture: Architecture,
    components: tuple[Component, ...],
    max_shard_bytes: int,
    progress: Progress,
) -> None:
    """All files of a pipeline that stock `from_pretrained` loads and that draws noise."""
    _write_small_parts(folder, architecture, components)
    pools = _Pools.make()
    for component in components:
        write_component(folder, component, pools.read, max_shard_bytes, progress)


def _plan(architecture: Architecture, recipe: ModelRecipe) -> tuple[Component, ...]:
    denoiser = architecture.family.denoiser
    configs: dict[str, Config | None] = {
        "text_encoder": architecture.text_encoder,
        "text_encoder_2": architecture.second_text_encoder,
        denoiser: architecture.denoiser,
        "vae": architecture.vae,
    }
    classes = {
        **_TEXT_ENCODERS[architecture.family],
        denoiser: _DENOISER_CLASS[architecture.family],
        "vae": "AutoencoderKL",
    }
    return tuple(
        plan_component(
            name, class_name, _full_config(class_name, configs[name]), storage_of(recipe, name)
        )
        for name, class_name in classes.items()
    )


def _full_config(class_name: str, config: Config | None) -> dict[str, object]:
    """What a folder of the library's own would say; CLIP pools at its tokenizer's end token."""
    assert config is not None
    full = dict(config)
    if class_name.startswith("CLIP"):
        tokenizer = clip_tokenizer()
        full |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "architectures": [class_name],
            "model_type": "clip_text_model",
        }
    elif class_name.startswith("T5"):
        full |= {"architectures": [class_name], "model_type": "t5"}
    else:
        full |= {"_class_name": class_name, "_diffusers_version": diffusers.__version__}
    return full


def _with_blocks(architecture: Architecture, num_single: int) -> Architecture:
    assert architecture.second_text_encoder is not None
    return replace(
        architecture,
        denoiser={
            **architecture.denoiser,
            "num_layers": math.ceil(num_single * _DOUBLE_PER_SINGLE),
            "num_single_layers": num_single,
        },
        second_text_encoder={
            **architecture.second_text_encoder,
            "num_layers": math.ceil(num_single * _T5_PER_SINGLE),
        },
    )


def _write_small_parts(
    folder: Path, architecture: Architecture, components: tuple[Component, ...]
) -> None:
    scheduler = _SCHEDULER[architecture.family]
    index: dict[str, object] = {
        "_class_name": PIPELINE_CLASS[architecture.family],
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    if architecture.family is Family.FLUX:
        t5_tokenizer().save_pretrained(folder / "tokenizer_2")
        index["tokenizer_2"] = ["transformers", "T5Tokenizer"]
    if architecture.family is Family.SDXL:
        clip_tokenizer().save_pretrained(folder / "tokenizer_2")
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    if architecture.family is Family.SD15:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    for component in components:
        kind = component.kind
        index[component.name] = [kind.library, kind.model_class.__name__]
    getattr(diffusers, scheduler)(**architecture.scheduler).save_config(folder / "scheduler")
    write_json(folder / "model_index.json", index)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """Random numbers by the type in which they are stored."""

    by_dtype: Mapping[torch.dtype, torch.Tensor]

    @classmethod
    def make(cls) -> "_Pools":
        normal = torch.randn(_POOL_ELEMENTS, generator=torch.Generator().manual_seed(0))
        pools = {
            dtype: (normal * STD).to(dtype)
            for dtype in (torch.bfloat16, torch.float16, torch.float32)
        }
        limit = torch.finfo(torch.float8_e4m3fn).max
        codes = (normal * _FLOAT8_STD).clamp(-limit, limit).to(torch.float8_e4m3fn)
        return cls(by_dtype={**pools, torch.float8_e4m3fn: codes})

    def read(self, tensor: PlannedTensor) -> dict[str, torch.Tensor]:
        """Biases are 0 and norms 1; a float8 tensor's scales make its spread the same."""
        if len(tensor.parts) == 1:
            (part,) = tensor.parts
            if len(part.shape) == 1:
                value = 0.0 if part.name.endswith("bias") else 1.0
                return {part.name: torch.full(part.shape, value, dtype=part.dtype)}
        return {
            part.name: torch.full(part.shape, STD / _FLOAT8_STD)
            if part.name.endswith("_scale")
            else self._cut(part.name, part.dtype, part.shape)
            for part in tensor.parts
        }

    def _cut(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        pool = self.by_dtype[dtype]
        missing = torch.Size(shape).numel()
        pieces = []
        start = zlib.crc32(name.encode()) % len(pool)
        while missing:
            piece = pool[start : start + missing]
            pieces.append(piece)
            missing -= len(piece)
            start = 0
        # concatenation knows no float8
        return torch.cat([piece.view(_BITS[dtype]) for piece in pieces]).view(dtype).view(shape)


_BITS: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
    torch.float8_e4m3fn: torch.uint8,
}
