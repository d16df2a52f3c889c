"""Quantizes weights to 8 bits, and converts them back to 16.

Sets none of inductor's options: `compilation` decides what is compiled. torchao's packages of
quantisation bring torch's compiler along, so only a module that has to be quantised imports them.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor
from torchao.utils import TorchAOBaseTensor

from pixpod.engine.precision.float8 import LEAST_ACTIVATION, holds_float8, weight_only
from pixpod.families import Precision, QuantizationSpec

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

_PATCHING = threading.Lock()

LayerFilter = Callable[[nn.Module, str], bool]
"""Decides by a module and its full name whether its weights are quantized."""


def quantize_float8_dynamic(
    module: nn.Module, device: torch.device, spec: QuantizationSpec | None = None
) -> None:
    """Put Linear layers into float8 in place; activations are quantized row by row as they come.

    Per row, because a scale over the whole batch would let an image's neighbours change it. The
    module must be in bfloat16 and its sizes multiples of 16. Without `spec` no layer is spared.
    """
    from torchao.quantization import quantize_

    with _hardware_check_of_torchao(device):
        quantize_(module, float8_dynamic(), filter_fn=linear_layers(spec))


def float8_dynamic_recipe() -> "Float8DynamicActivationFloat8WeightConfig":
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), activation_value_lb=LEAST_ACTIVATION
    )


def float8_dynamic() -> "AOBaseConfig":
    """Return torchao's configuration, without its changes of inductor's settings."""
    return replace(float8_dynamic_recipe(), set_inductor_config=False)


def convert(
    module: nn.Module,
    precision: Precision,
    device: torch.device,
    spec: QuantizationSpec | None = None,
) -> None:
    """Convert a module's Linear layers to a format, and put all of it on the device.

    From bfloat16 to 8 bits, from float8 to bfloat16 or weight-only; layers that have the format
    stay. Layer by layer, so that no more than one exists twice, wherever the module is before.
    """
    if holds_float8(module) and precision in _FROM_FLOAT8:
        _replace_float8(module, _FROM_FLOAT8[precision], device)
    elif holds_float8(module):
        _replace_float8(module, lambda weight: weight.dequantize(), device)
        _detach_from_files(module)
    elif precision in _RECIPES:
        from torchao.quantization import quantize_

        config, layers = _RECIPES[precision]
        with _hardware_check_of_torchao(device):
            quantize_(module, config(), filter_fn=layers(spec), device=device)
        _detach_from_files(module)
    else:
        module.to(device)


def is_8_bit(module: nn.Module) -> bool:
    """Return whether torchao has quantised any of a module's layers, whatever the recipe."""
    return any(isinstance(parameter, TorchAOBaseTensor) for parameter in module.parameters())


def linear_layers(spec: QuantizationSpec | None) -> LayerFilter:
    """Return a filter for the layers that are quantized in 8-bit formats."""
    spared = spec.keep_16_bit if spec else frozenset()

    def is_quantized(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.split(".")[0] not in spared

    return is_quantized


def token_layers(spec: QuantizationSpec | None) -> LayerFilter:
    """Return a filter for quantized layers that have a row for each token.

    Modulation layers have one for each image, and INT8 products need more than 16 rows
    (torch._int_mm).
    """
    is_quantized = linear_layers(spec)
    adaln = re.compile(spec.adaln) if spec else None

    def has_token_rows(module: nn.Module, name: str) -> bool:
        return is_quantized(module, name) and not (adaln and adaln.fullmatch(name))

    return has_token_rows


def _float8_weight_only() -> "AOBaseConfig":
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig(set_inductor_config=False)


def _int8_dynamic() -> "AOBaseConfig":
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


_RECIPES: Mapping[
    Precision,
    tuple[Callable[[], "AOBaseConfig"], Callable[[QuantizationSpec | None], LayerFilter]],
] = {
    Precision.FLOAT8_DYNAMIC: (float8_dynamic, linear_layers),
    Precision.FLOAT8_WEIGHT_ONLY: (_float8_weight_only, linear_layers),
    Precision.INT8_DYNAMIC: (_int8_dynamic, token_layers),
}


_FROM_FLOAT8: Mapping[Precision, Callable[[Float8Tensor], torch.Tensor]] = {
    Precision.FLOAT8_DYNAMIC: lambda weight: weight,
    Precision.FLOAT8_WEIGHT_ONLY: weight_only,
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


def _detach_from_files(module: nn.Module) -> None:
    """Copy tensors that are views of a file's bytes: one bias could keep gigabytes allocated."""
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
    """Disable torchao's check on a CPU: 0.18 needs a GPU though `torch._scaled_mm` runs on a CPU.

    On CUDA the check stays: a GPU below compute capability 8.9 has no FP8 arithmetic.
    """
    if device.type != "cpu":
        yield
        return
    from torchao.quantization import quant_api

    with _PATCHING:
        check = quant_api._check_hardware_support
        quant_api._check_hardware_support = lambda granularity: None
        try:
            yield
        finally:
            quant_api._check_hardware_support = check
