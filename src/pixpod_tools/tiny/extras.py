"""Trains, publishes and measures the nets of `model_cache/tiny/extras`, by their names."""

import inspect
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin

from pixpod_tools.tiny import controlnets, unet
from pixpod_tools.tiny.training import Course

FOLDER = "extras"
CLASS_SETTINGS = ("_class_name", "_diffusers_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyNet:
    """A ControlNet for a tiny model. `type` is a key of `controls.CONTROLS`."""

    model: str
    type: str


NETS: Mapping[str, TinyNet] = {
    "sdxl-canny-tiny": TinyNet(model="sdxl-tiny", type="canny"),
    "sdxl-depth-tiny": TinyNet(model="sdxl-tiny", type="depth"),
    "sd15-canny-tiny": TinyNet(model="sd15-tiny", type="canny"),
    "flux-canny-tiny": TinyNet(model="flux-tiny", type="canny"),
}

_CONDITIONS: Mapping[str, unet.Condition] = {
    "sdxl-tiny": unet.condition_sdxl,
    "sd15-tiny": unet.condition_sd15,
}


def train_net(name: str, cache: Path, course: Course) -> None:
    """Train a net for a model in the folder `cache`, and put it beside the models."""
    net = NETS[name]
    pipeline = DiffusionPipeline.from_pretrained(cache / net.model, dtype=torch.float32)
    if condition := _CONDITIONS.get(net.model):
        module = controlnets.untrained_unet_net(pipeline)
        buckets = controlnets.load_controlled(pipeline, net.type, controlnets.prepare_unet)
        controlnets.train_unet_net(pipeline, condition, module, buckets, course)
    else:
        module = controlnets.untrained_flux_net(pipeline)
        buckets = controlnets.load_controlled(pipeline, net.type, controlnets.prepare_flux)
        controlnets.train_flux_net(pipeline, module, buckets, course)
    _publish(module, cache / FOLDER / name)


def _publish(module: ModelMixin, out: Path) -> None:
    """Write a net in bf16; a net that is there already is replaced, and its card is kept."""
    draft = out.with_name(f".{out.name}")
    module.to(torch.bfloat16)
    module.save_pretrained(draft)
    _keep_known_settings(type(module), draft / "config.json")
    if (card := out / "README.md").exists():
        shutil.copy(card, draft)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)


def _keep_known_settings(net_class: type[ModelMixin], config: Path) -> None:
    """Drop settings of the denoiser that the net was made from, and where that was."""
    settings = json.loads(config.read_text())
    known = inspect.signature(net_class.__init__).parameters
    kept = {key: value for key, value in settings.items() if key in {*known, *CLASS_SETTINGS}}
    config.write_text(json.dumps(kept, indent=2) + "\n")
