"""Quantizes weights to 8 bits, and converts them back to 16.

Sets none of inductor's options: `compilation` decides what is compiled.
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

from pixpod.families import Precision, QuantizationSpec

_PATCHING = threading.Lock()

LEAST_ACTIVATION = 1e-12
"""Largest value that a row of activations has at least for its scale: that of a row of zeros, as
padding is, would be 0, and the row not a number.
"""

LayerFilter = Callable[[nn.Module, str], bool]
"""Decides by a module and its full name whether its weights are quantized."""


def quantize_float8_dynamic(
    module: nn.Module, device: torch.device, spec: QuantizationSpec | None = None
) -> None:
    """Put Linear layers into float8 in place; activations are quantized row by row as they come.

    Per row, because a scale over the whole batch would let an image's neighbours change it. The
    module must be in bfloat16 and its sizes multiples of 16. Without `spec` no layer is spared.
    """
    with _hardware_check_of_torchao(device):
        quantize_(module, float8_dynamic(), filter_fn=linear_layers(spec))


def float8_dynamic_recipe() -> Float8DynamicActivationFloat8WeightConfig:
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), activation_value_lb=LEAST_ACTIVATION
    )


def float8_dynamic() -> AOBaseConfig:
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
        config, layers = _RECIPES[precision]
        with _hardware_check_of_torchao(device):
            quantize_(module, config(), filter_fn=layers(spec), device=device)
        _detach_from_files(module)
    else:
        module.to(device)


def holds_float8(module: nn.Module) -> bool:
    return any(isinstance(parameter, Float8Tensor) for parameter in module.parameters())


def is_8_bit(module: nn.Module) -> bool:
    """Return whether torchao has quantised any of a module's layers, whatever the recipe."""
    return any(isinstance(parameter, TorchAOBaseTensor) for parameter in module.parameters())


def computes_float8(device: torch.device) -> bool:
    """Return whether a product by rows in float8 works on this GPU with this torch: some builds
    send it to a library that refuses it (pytorch#192707). `gpus.toml` lists the GPUs that may.
    """
    layer = nn.Linear(64, 64, bias=False, device=device, dtype=torch.bfloat16)
    try:
        quantize_float8_dynamic(layer, device)
        with torch.inference_mode():
            product = layer(torch.ones(32, 64, device=device, dtype=torch.bfloat16))
            return bool(torch.isfinite(product).all().item())
    except (RuntimeError, AssertionError):
        return False


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


_RECIPES: Mapping[
    Precision,
    tuple[Callable[[], AOBaseConfig], Callable[[QuantizationSpec | None], LayerFilter]],
] = {
    Precision.FLOAT8_DYNAMIC: (float8_dynamic, linear_layers),
    Precision.FLOAT8_WEIGHT_ONLY: (
        lambda: Float8WeightOnlyConfig(set_inductor_config=False),
        linear_layers,
    ),
    Precision.INT8_DYNAMIC: (
        lambda: Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
        token_layers,
    ),
}


def _weight_only(weight: Float8Tensor) -> torch.Tensor:
    """Return a tensor with the same values for which activations stay 16-bit."""
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


_FROM_FLOAT8: Mapping[Precision, Callable[[Float8Tensor], torch.Tensor]] = {
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
    with _PATCHING:
        check = quant_api._check_hardware_support
        quant_api._check_hardware_support = lambda granularity: None
        try:
            yield
        finally:
            quant_api._check_hardware_support = check
