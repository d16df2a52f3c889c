"""8-bit weights: which layers, which recipe, and the way back to 16 bits.

Sets none of inductor's options: what is compiled, and how, is no matter of this module.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    PerRow,
    quant_api,
    quantize_,
)
from torchao.utils import TorchAOBaseTensor

from pixpod.catalog import Precision

KEEP_16_BIT = frozenset(
    {"x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"}
)
"""Top-level modules of a FLUX transformer that lose too much at 8 bits for what they save:
its embedders and its output layer (torchao's and flux-fp8-api's recipes agree on them)."""

ADALN = re.compile(r"(transformer_blocks|single_transformer_blocks)\.\d+\.norm\w*\.linear")
"""The layers that modulate each block, by name: they have one row for each image."""

_PATCHING = threading.Lock()

IsMeant = Callable[[nn.Module, str], bool]


def quantize_float8_dynamic(transformer: nn.Module, device: torch.device) -> None:
    """Put the Linear layers into float8 in place, activations quantised row by row as they come.

    Per row, because a scale over the whole batch would let an image's neighbours change it.
    The module must be in bfloat16 and its sizes multiples of 16.
    """
    with _hardware_check_of_torchao(device):
        quantize_(transformer, float8_dynamic(), filter_fn=is_quantized)


def float8_dynamic_recipe() -> Float8DynamicActivationFloat8WeightConfig:
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def float8_dynamic() -> AOBaseConfig:
    """The recipe, leaving inductor's settings alone."""
    return replace(float8_dynamic_recipe(), set_inductor_config=False)


def convert(module: nn.Module, precision: Precision, device: torch.device) -> None:
    """Give a module's Linear layers what they are to run in, and put all of it on the device.

    From bfloat16 to 8 bits, from float8 to bfloat16 or weight-only; what is so already stays.
    Layer by layer, so that no more than one is there twice, wherever the module is before.
    """
    if holds_float8(module) and precision in _OF_FLOAT8:
        _replace_float8(module, _OF_FLOAT8[precision], device)
    elif holds_float8(module):
        _replace_float8(module, lambda weight: weight.dequantize(), device)
        _let_files_go(module)
    elif precision in _RECIPES:
        config, is_meant = _RECIPES[precision]
        quantize_layers(module, config(), is_meant, device)
    else:
        module.to(device)


def quantize_layers(
    module: nn.Module, config: AOBaseConfig, is_meant: IsMeant, device: torch.device
) -> None:
    """Quantise those Linear layers that are meant, and put all of the module on the device."""
    with _hardware_check_of_torchao(device):
        quantize_(module, config, filter_fn=is_meant, device=device)
    _let_files_go(module)


def holds_float8(module: nn.Module) -> bool:
    return any(isinstance(parameter, Float8Tensor) for parameter in module.parameters())


def is_8_bit(module: nn.Module) -> bool:
    """Whether some of its layers are quantised by torchao, whatever the recipe."""
    return any(isinstance(parameter, TorchAOBaseTensor) for parameter in module.parameters())


def computes_float8(device: torch.device) -> bool:
    """Whether a product by rows in float8 works on this card with this torch: some builds send
    it to a library that refuses it (pytorch#192707). Of the cards, `gpus.toml` tells which may.
    """
    layer = nn.Linear(64, 64, bias=False, device=device, dtype=torch.bfloat16)
    try:
        quantize_float8_dynamic(layer, device)
        with torch.inference_mode():
            product = layer(torch.ones(32, 64, device=device, dtype=torch.bfloat16))
            return bool(torch.isfinite(product).all().item())
    except (RuntimeError, AssertionError):
        return False


def is_quantized(module: nn.Module, name: str) -> bool:
    """Whether a module of a FLUX transformer, by its name, is one that is held in 8 bits."""
    return isinstance(module, nn.Linear) and name.split(".")[0] not in KEEP_16_BIT


def sees_tokens(module: nn.Module, name: str) -> bool:
    """Whether it has a row for each token. Others have one for each image, and INT8 products need
    more than 16 (torch._int_mm).
    """
    return is_quantized(module, name) and not ADALN.fullmatch(name)


_RECIPES: Mapping[Precision, tuple[Callable[[], AOBaseConfig], IsMeant]] = {
    Precision.FLOAT8_DYNAMIC: (float8_dynamic, is_quantized),
    Precision.FLOAT8_WEIGHT_ONLY: (
        lambda: Float8WeightOnlyConfig(set_inductor_config=False),
        is_quantized,
    ),
    Precision.INT8_DYNAMIC: (
        lambda: Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
        sees_tokens,
    ),
}


def _weight_only(weight: Float8Tensor) -> torch.Tensor:
    """The same values; activations stay 16-bit."""
    made: torch.Tensor = Float8Tensor(
        weight.qdata,
        weight.scale,
        block_size=weight.block_size,
        mm_config=weight.mm_config,
        act_quant_kwargs=None,
        kernel_preference=weight.kernel_preference,
        dtype=weight.dtype,
    )
    return made


_OF_FLOAT8: Mapping[Precision, Callable[[Float8Tensor], torch.Tensor]] = {
    Precision.FLOAT8_DYNAMIC: lambda weight: weight,
    Precision.FLOAT8_WEIGHT_ONLY: _weight_only,
}


def _replace_float8(
    module: nn.Module, make: Callable[[Float8Tensor], torch.Tensor], device: torch.device
) -> None:
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(parameter, Float8Tensor):
                made = make(parameter.detach().to(device))
                setattr(owner, name, nn.Parameter(made, requires_grad=False))
    module.to(device)


def _let_files_go(module: nn.Module) -> None:
    """Copy what is still a view of a file's bytes: one bias would keep gigabytes on the device."""
    copies: dict[int, torch.Tensor] = {}
    for parameter in module.parameters():
        if isinstance(parameter, TorchAOBaseTensor):
            continue
        if parameter.untyped_storage().nbytes() > parameter.nbytes:
            address = parameter.data_ptr()  # tied weights stay tied
            if address not in copies:
                copies[address] = parameter.data.clone()
            parameter.data = copies[address]


@contextmanager
def _hardware_check_of_torchao(device: torch.device) -> Iterator[None]:
    """Off on a CPU: torchao 0.18 asks for a GPU there although `torch._scaled_mm` has a CPU path.

    On CUDA the check stays: a card below compute capability 8.9 has no FP8 arithmetic.
    """
    if device.type != "cpu":
        yield
        return
    with _PATCHING:
        check = quant_api._check_hardware_support
        quant_api._check_hardware_support = lambda granularity: None
        try:
            yield
        finally:
            quant_api._check_hardware_support = check
