"""Converts a folder in the layout of diffusers to baked files, one tensor at a time.

The source's files are mapped; only one tensor and its converted form take memory of their own.
Needs no GPU.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pixpod.catalog import ModelSpec
from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.weights.layout import MODEL_INDEX, tensor_paths
from pixpod_tools.bake.components import Component, plan_component, storage_of
from pixpod_tools.bake.directory import NOT_LISTED
from pixpod_tools.bake.layout import write_component, write_json
from pixpod_tools.bake.names import match_names
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.shards import PlannedTensor, Progress

_SMALL_KINDS = {".json", ".txt", ".model", ".jinja"}
_NEVER_RUN = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A planned conversion of folders. `folders` has the source of each component."""

    source: Path
    index: Mapping[str, object]
    components: tuple[Component, ...]
    folders: Mapping[str, Path]

    @property
    def size_bytes(self) -> int:
        return sum(component.size_bytes for component in self.components)


def plan_conversion(
    spec: ModelSpec, recipe: ModelRecipe, source: Path, vae: Path | None
) -> Conversion:
    """Plan a conversion; reads configs only. `vae` replaces the source's own.

    Raises ModelUnavailable if the source is of another kind of model, or quantised already.
    """
    index = read_json(source / MODEL_INDEX)
    folders = {name: source / name for name in spec.family.component_names}
    if vae is not None:
        folders[spec.family.vae] = vae
    components = []
    for component in spec.family.components:
        name, folder = component.name, folders[component.name]
        found = index.get(name)
        if found != [component.library, component.class_name]:
            got = found[1] if isinstance(found, list) and len(found) == 2 else "none"
            raise ModelUnavailable(
                f"{source / MODEL_INDEX}: {name}: expected a {component.class_name}, got {got}"
            )
        config = read_json(folder / "config.json")
        if "quantization_config" in config:
            raise ModelUnavailable(f"{folder}: is quantised already: bake from 16-bit weights")
        storage = storage_of(spec.family, recipe.plan, name)
        components.append(plan_component(component, config, storage, spec.family.quantization))
    return Conversion(source=source, index=index, components=tuple(components), folders=folders)


def convert(conversion: Conversion, folder: Path, max_shard_bytes: int, progress: Progress) -> None:
    """Fill a folder. Components that an earlier run has finished there are kept.

    Raises WeightsUnreadable for a source that is damaged or differs from its configs.
    """
    _copy_small_parts(conversion, folder)
    for component in conversion.components:
        if (folder / component.name).exists():
            progress(component.size_bytes)
            continue
        source = conversion.folders[component.name]
        with ExitStack() as files:
            reader = ComponentReader(files, source, component)
            write_component(folder, component, reader.read, max_shard_bytes, progress)


class ComponentReader:
    """Reads a component's tensors; its files stay open as long as `files` is open."""

    def __init__(self, files: ExitStack, source: Path, component: Component) -> None:
        self._source = source
        self._component = component
        self._file_of: dict[str, Any] = {}
        for path in tensor_paths(source):
            try:
                file = files.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as exc:
                raise WeightsUnreadable(f"{path}: {exc}") from exc
            self._file_of |= dict.fromkeys(file.keys(), file)
        wanted = [tensor.name for tensor in component.tensors]
        self._name_of = match_names(wanted, self._file_of.keys(), str(source))
        self._shapes = {tensor.name: tensor.parts[0].shape for tensor in component.tensors}

    def read(self, planned: PlannedTensor) -> dict[str, torch.Tensor]:
        name = self._name_of[planned.name]
        tensor = self._file_of[name].get_tensor(name)
        shape = self._shapes[planned.name]
        # a Linear layer may have been a convolution of one pixel before
        if tuple(tensor.shape) not in (shape, (*shape, 1, 1)):
            raise WeightsUnreadable(
                f"{self._source}: tensor {name}: expected {shape}, got {tuple(tensor.shape)}"
            )
        dtype = self._component.storage.dtype
        cast = tensor.reshape(shape).to(dtype) if tensor.is_floating_point() else tensor
        if cast.is_floating_point() and not torch.isfinite(cast).all():
            raise WeightsUnreadable(
                f"{self._source}: tensor {name} has values that are no numbers in {dtype}"
            )
        return self._component.store(planned.name, cast)


def _copy_small_parts(conversion: Conversion, folder: Path) -> None:
    index = {key: value for key, value in conversion.index.items() if not key.startswith("_name")}
    left_out = {*_NEVER_RUN, *_encoders_left_out(conversion)}
    index |= {name: [None, None] for name in index if name in left_out}
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    write_json(folder / MODEL_INDEX, index)
    tokenizers = (each for each in index if each.startswith("tokenizer") and each not in left_out)
    for name in ("scheduler", *tokenizers):
        for path in sorted((conversion.source / name).glob("*")):
            if path.suffix in _SMALL_KINDS:
                (folder / name).mkdir(exist_ok=True)
                shutil.copyfile(path, folder / name / path.name)
    for path in sorted(conversion.source.glob("*")):
        if path.name.startswith(NOT_LISTED) and path.is_file():
            shutil.copyfile(path, folder / path.name)


def _encoders_left_out(conversion: Conversion) -> Iterator[str]:
    """Yield the names of text encoders that the model is baked without, and of their tokenizers."""
    for name in conversion.index:
        if name.startswith("text_encoder") and name not in conversion.folders:
            yield from (name, name.replace("text_encoder", "tokenizer"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a config. Any: its library decides what it contains."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelUnavailable(f"{path}: is missing: expected the layout of diffusers") from exc
    except (OSError, ValueError) as exc:
        raise WeightsUnreadable(f"{path}: cannot be read as JSON") from exc
    if not isinstance(found, dict):
        raise WeightsUnreadable(f"{path}: expected a JSON object")
    return found
