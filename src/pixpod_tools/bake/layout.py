"""Writes a model's folder in the layout of diffusers, as stock `from_pretrained` reads it."""

import json
from collections.abc import Mapping
from pathlib import Path

from pixpod.weights.hub_repository import STEMS
from pixpod_tools.bake.components import Component
from pixpod_tools.bake.shards import Progress, Read, write_shards


def write_component(
    folder: Path, component: Component, read: Read, max_shard_bytes: int, progress: Progress
) -> None:
    """Write a component's folder, which gets its own name only once it is complete."""
    target = folder / component.name
    part = folder / f"{component.name}.part"
    write_component_files(part, component, read, max_shard_bytes, progress)
    part.rename(target)


def write_component_files(
    folder: Path, component: Component, read: Read, max_shard_bytes: int, progress: Progress
) -> None:
    """Write a component's configuration and weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", component.config)
    write_shards(
        folder,
        STEMS[component.spec.library],
        component.tensors,
        read,
        metadata=component.metadata,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
