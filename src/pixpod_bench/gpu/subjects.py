"""Builds models with random weights, prepared as a worker prepares its own, or as stock."""

from pathlib import Path

import torch

from pixpod.catalog import load_catalog
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.device import find_hardware
from pixpod.engine.model import LoadedModel
from pixpod.engine.precision.attention import set_attention
from pixpod.families import Precision
from pixpod.testing.random_models import build_random_model
from pixpod.testing.runners import LocalRunner
from pixpod_bench.gpu.measure import Subject
from pixpod_bench.gpu.scenarios import Mode, Side, Variant
from pixpod_bench.gpu.stock import StockRunner, compile_stock
from pixpod_tools.bake.architectures import get_architecture
from pixpod_tools.bake.character_tokenizers import tokenizer_for


def build_model(name: str, precision: Precision, device: torch.device) -> LoadedModel:
    spec = load_catalog()[name]
    return build_random_model(get_architecture(name), tokenizer_for, spec, precision, device)


def build_subject(variant: Variant, device: torch.device, compiled_dir: Path) -> Subject:
    """Build a variant, ready to generate. `compiled_dir` may have packages for pixpod's side."""
    model = build_model(variant.model, variant.precision, device)
    if variant.side is Side.STOCK:
        if variant.mode is not Mode.EAGER:
            compile_stock(model)
        return StockRunner(model)
    warnings: tuple[str, ...] = ()
    if model.spec.family.sets_attention_backend:
        warnings = set_attention(model.denoiser, find_hardware(device).attention, device)
    if variant.mode is Mode.COMPILED:
        compilation = compile_model(model, CompiledStore(compiled_dir))
        return LocalRunner(model, lambda: (*warnings, *compilation.warnings))
    if variant.mode is Mode.GRAPHS:
        _capture_graphs(model)
    return LocalRunner(model, lambda: warnings)


def _capture_graphs(model: LoadedModel) -> None:
    """Compile a UNet for each size by itself, with all its launches captured as one graph."""
    for module in (model.denoiser, model.components[model.spec.family.vae]):
        module.to(memory_format=torch.channels_last)
    model.denoiser.compile(mode="reduce-overhead", fullgraph=True)
