"""Models of full size with random weights, in the layout of baked ones, for benchmarks.

The time of reading, binding and generating does not depend on the values of weights. One block of
random numbers is made and written repeatedly, with each tensor beginning at another offset.
"""

import inspect
import math
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
import transformers

from pixpod.errors import InvalidSettings
from pixpod.families import ComponentSpec
from pixpod_tools.bake.architectures import Architecture, Config, get_architecture
from pixpod_tools.bake.character_tokenizers import tokenizer_for
from pixpod_tools.bake.components import Component, plan_component, storage_of
from pixpod_tools.bake.layout import write_component, write_json
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.shards import PlannedTensor, Progress

STD = 0.02
"""Spread of the weights: activations of all full-size models stay finite, also in float16."""

_POOL_ELEMENTS = 1 << 25
_FLOAT8_STD = 112.0
"""Spread of float8 values: a quarter of the largest float8_e4m3fn, so that hardly any is clipped
and none is NaN.
"""

_SINGLE_BLOCKS = 38
_DOUBLE_PER_SINGLE = 19 / 38
_T5_PER_SINGLE = 24 / 38


def find_architecture(name: str, size_bytes: int | None) -> Architecture:
    """Return the architecture of a model, with fewer FLUX and T5 blocks for a smaller size.

    Raises InvalidSettings for a name without one, or a size for a model that has no such blocks.
    """
    architecture = get_architecture(name)
    if size_bytes is None:
        return architecture
    if (
        architecture.components[architecture.family.denoiser].get("num_single_layers")
        != _SINGLE_BLOCKS
    ):
        raise InvalidSettings(f"--size-gb with {name}: expected a full-size FLUX model")
    return architecture


def plan_model(
    architecture: Architecture, recipe: ModelRecipe, size_bytes: int | None = None
) -> tuple[Component, ...]:
    """Return the components in the order of a boot; `size_bytes` is their approximate total."""
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
    """Write all files of a pipeline that stock `from_pretrained` loads; its images are noise."""
    _write_small_parts(folder, architecture, components)
    pools = _Pools.make()
    for component in components:
        write_component(folder, component, pools.read, max_shard_bytes, progress)


def _plan(architecture: Architecture, recipe: ModelRecipe) -> tuple[Component, ...]:
    family = architecture.family
    return tuple(
        plan_component(
            each,
            _full_config(each, architecture.components[each.name]),
            storage_of(family, recipe.plan, each.name),
            family.quantization,
        )
        for each in family.components
    )


def _full_config(component: ComponentSpec, config: Config) -> dict[str, object]:
    """Return a config as the library itself writes it; CLIP pools at its tokenizer's end token."""
    class_name = component.class_name
    if component.library == "diffusers":
        return {
            **config,
            "_class_name": class_name,
            "_diffusers_version": diffusers.__version__,
        }
    model_type = getattr(transformers, class_name).config_class.model_type
    full = {**config, "architectures": [class_name], "model_type": model_type}
    if class_name.startswith("CLIP"):
        tokenizer = tokenizer_for(class_name)
        full |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    return full


def _with_blocks(architecture: Architecture, num_single: int) -> Architecture:
    transformer = {
        "num_layers": math.ceil(num_single * _DOUBLE_PER_SINGLE),
        "num_single_layers": num_single,
    }
    t5 = {"num_layers": math.ceil(num_single * _T5_PER_SINGLE)}
    components = architecture.components
    return replace(
        architecture,
        components={
            **components,
            "text_encoder_2": {**components["text_encoder_2"], **t5},
            "transformer": {**components["transformer"], **transformer},
        },
    )


def _write_small_parts(
    folder: Path, architecture: Architecture, components: tuple[Component, ...]
) -> None:
    family = architecture.family
    pipeline_class = getattr(diffusers, family.default_pipeline)
    scheduler = family.schedulers[next(iter(family.schedulers))].class_name
    index: dict[str, object] = {
        name: [None, None]
        for name, each in inspect.signature(pipeline_class.__init__).parameters.items()
        if each.default is inspect.Parameter.empty and name != "self"
    }
    index |= {
        **family.pipeline_options,
        "_class_name": family.default_pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
    }
    for encoder in family.text_encoders:
        name = encoder.replace("text_encoder", "tokenizer")
        tokenizer = tokenizer_for(family.component(encoder).class_name)
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    for component in components:
        index[component.name] = [component.spec.library, component.spec.class_name]
    scheduler_class = getattr(diffusers, scheduler)
    scheduler_class.from_config(dict(architecture.scheduler)).save_config(folder / "scheduler")
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
        """Return a tensor's values: biases are 0, norms 1, others random with the spread STD."""
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
        # torch does not concatenate float8
        return torch.cat([piece.view(_BITS[dtype]) for piece in pieces]).view(dtype).view(shape)


_BITS: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
    torch.float8_e4m3fn: torch.uint8,
}
