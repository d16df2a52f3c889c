"""FP8 for transformers: which layers, which recipe; and the one place that lets it run on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    PerRow,
    quant_api,
    quantize_,
)

KEEP_16_BIT = frozenset(
    {"x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"}
)
"""Top-level modules of a FLUX transformer that lose too much at 8 bits for what they save:
its embedders and its output layer (torchao's and flux-fp8-api's recipes agree on them)."""


def quantize_float8_dynamic(transformer: nn.Module, device: torch.device) -> None:
    """Put the Linear layers into float8 in place, activations quantised row by row as they come.

    Per row, because a scale over the whole batch would let an image's neighbours change it.
    The module must be in bfloat16 and its sizes multiples of 16.
    """
    with _hardware_check_of_torchao(device):
        quantize_(transformer, float8_dynamic_recipe(), filter_fn=_is_quantized)


def float8_dynamic_recipe() -> Float8DynamicActivationFloat8WeightConfig:
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _is_quantized(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.split(".")[0] not in KEEP_16_BIT


@contextmanager
def _hardware_check_of_torchao(device: torch.device) -> Iterator[None]:
    """Off on a CPU: torchao 0.18 asks for a GPU there although `torch._scaled_mm` has a CPU path.

    On CUDA the check stays: a card below compute capability 8.9 has no FP8 arithmetic.
    """
    check = quant_api._check_hardware_support
    if device.type == "cpu":
        quant_api._check_hardware_support = lambda granularity: None
    try:
        yield
    finally:
        quant_api._check_hardware_support = check
