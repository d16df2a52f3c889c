"""Builds pipelines with fresh weights; all else is as in the checkpoints that ship."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, ModelMixin
from torch import nn
from transformers import PreTrainedModel


def untrained_pipeline(folder: Path, vae: AutoencoderKL) -> DiffusionPipeline:
    """Return a pipeline with the configs, tokenizers and scheduler of the checkpoint there."""
    pipeline = DiffusionPipeline.from_pretrained(folder, vae=vae, dtype=torch.float32)
    fresh = {
        name: type(part).from_config(part.config)
        if isinstance(part, ModelMixin)
        else type(part)(part.config)
        for name, part in pipeline.components.items()
        if isinstance(part, (ModelMixin, PreTrainedModel)) and name != "vae"
    }
    pipeline.register_modules(**fresh)
    if isinstance(pipeline, FluxPipeline):
        nn.init.zeros_(pipeline.transformer.proj_out.weight)
        nn.init.zeros_(pipeline.transformer.proj_out.bias)
        with torch.no_grad():
            pipeline.text_encoder_2.shared.weight.mul_(0.3)  # T5's are too large for this width
    return pipeline.to(torch.float32)


def untrained_vae(folder: Path) -> AutoencoderKL:
    """Return an autoencoder with the config of the one there."""
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):  # residual branches start at zero
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return vae


def text_encoders(pipeline: DiffusionPipeline) -> nn.ModuleList:
    return nn.ModuleList(
        part for name, part in pipeline.components.items() if name.startswith("text_encoder")
    )
