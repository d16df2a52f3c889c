"""The parts of an extra as they will be stored: components, or one file of a format of its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from pixpod.engine.loading.extras import check_ip_adapter
from pixpod.errors import WeightsUnreadable
from pixpod.extras import ExtraSpec
from pixpod_tools.bake.components import Component, Storage, plan_component
from pixpod_tools.bake.convert import ComponentReader, read_json
from pixpod_tools.bake.layout import write_component_files
from pixpod_tools.bake.shards import PlannedTensor, Progress, StoredTensor, write_shards


class Part(Protocol):
    """A part that can be written."""

    @property
    def size_bytes(self) -> int: ...
    def write(self, folder: Path, max_shard_bytes: int, progress: Progress) -> None:
        """Write the part into the folder of its extra. Raises WeightsUnreadable."""
        ...


def plan_parts(
    extra: ExtraSpec, source: Path, dtype: torch.dtype, files: ExitStack
) -> tuple[Part, ...]:
    """Return an extra's parts. The files of `source` stay open as long as `files` is open.

    Raises ModelUnavailable for parts of another kind, WeightsUnreadable.
    """
    return (*_plan_components(extra, source, dtype), *_plan_file(extra, source, dtype, files))


def _plan_components(extra: ExtraSpec, source: Path, dtype: torch.dtype) -> Iterator[Part]:
    for spec in extra.components:
        config = read_json(source / spec.name / "config.json")
        component = plan_component(spec, config, Storage(dtype=dtype), None)
        yield _ComponentPart(source=source / spec.name, component=component)


def _plan_file(
    extra: ExtraSpec, source: Path, dtype: torch.dtype, files: ExitStack
) -> Iterator[Part]:
    if extra.file is None:
        return
    path = source / extra.file
    try:
        opened = files.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as exc:
        raise WeightsUnreadable(f"{path}: {exc}") from exc
    check_ip_adapter(extra.name, path, opened.keys())
    yield _FilePart(path=path, opened=opened, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ComponentPart:
    source: Path
    component: Component

    @property
    def size_bytes(self) -> int:
        return self.component.size_bytes

    def write(self, folder: Path, max_shard_bytes: int, progress: Progress) -> None:
        with ExitStack() as files:
            reader = ComponentReader(files, self.source, self.component)
            target = folder / self.component.name
            write_component_files(target, self.component, reader.read, max_shard_bytes, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilePart:
    """One file, which keeps its name and those of its tensors. Any: safetensors has no type."""

    path: Path
    opened: Any
    dtype: torch.dtype

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        return tuple(
            PlannedTensor(
                name=name, parts=(StoredTensor(name=name, dtype=self.dtype, shape=tuple(shape)),)
            )
            for name in self.opened.keys()  # noqa: SIM118 - no mapping
            for shape in [self.opened.get_slice(name).get_shape()]
        )

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def write(self, folder: Path, max_shard_bytes: int, progress: Progress) -> None:
        write_shards(
            folder,
            self.path.stem,
            self.tensors,
            self._read,
            metadata={"format": "pt"},
            max_shard_bytes=self.size_bytes,  # it is one file wherever it is read
            progress=progress,
        )

    def _read(self, planned: PlannedTensor) -> dict[str, torch.Tensor]:
        tensor = self.opened.get_tensor(planned.name).to(self.dtype)
        if not torch.isfinite(tensor).all():
            raise WeightsUnreadable(
                f"{self.path}: tensor {planned.name} has values that are no numbers in {self.dtype}"
            )
        return {planned.name: tensor}
