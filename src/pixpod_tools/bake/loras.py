"""Adds LoRAs to the weights of a model while it is baked."""

from collections.abc import Mapping, Sequence

import torch

from pixpod.catalog import ModelSpec
from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.adapters.side_path import Scaled
from pixpod.engine.model import LoadedModel
from pixpod.errors import InvalidSettings
from pixpod.job import LoraFile, ModelIdentity
from pixpod_tools.bake.components import Component, build_on_meta
from pixpod_tools.bake.recipes import RecipeLora

Merges = Mapping[str, Mapping[str, Sequence[Scaled]]]
"""Pairs and their scales by component, then by the name of the weight that they are added to."""


def read_loras(
    spec: ModelSpec, components: Sequence[Component], loras: Sequence[RecipeLora]
) -> Merges:
    """Read LoRAs for a model of these components.

    Raises AdapterUnusable for a file that does not fit the model, and WeightsUnreadable for one
    that is no safetensors file.
    """
    if not loras:
        return {}
    if spec.family.lora is None:
        raise InvalidSettings(f"--lora: expected none: {spec.family.title} models take none")
    model = _on_meta(spec, components)
    found: dict[str, dict[str, list[Scaled]]] = {}
    for lora in loras:
        file = LoraFile(
            field="--lora",
            name=lora.path.name,
            sha256=lora.sha256,
            path=lora.path,
            scale=lora.scale,
            is_deployed=True,
        )
        for component, pairs in read_adapter(file, model).pairs.items():
            weights = found.setdefault(component, {})
            for layer, pair in pairs.items():
                weights.setdefault(f"{layer}.weight", []).append((pair, lora.scale))
    return found


def merge(weight: torch.Tensor, scaled: Sequence[Scaled]) -> torch.Tensor:
    """Return a weight with the products of these pairs added, in float32."""
    total = weight.float()
    for pair, scale in scaled:
        product = pair.up.float() @ pair.down.float().flatten(1)
        total = total + scale * product.reshape(total.shape)
    return total


def _on_meta(spec: ModelSpec, components: Sequence[Component]) -> LoadedModel:
    """Return a model without weights, which knows its layers and their shapes."""
    return LoadedModel(
        spec=spec,
        identity=ModelIdentity(name=spec.name, revision="", precision="", weights=""),
        device=torch.device("meta"),
        components={each.name: build_on_meta(each.spec, each.config) for each in components},
        keys={},
        tokenizers={},
        scheduler_config={},
        pipeline_options={},
    )
