"""All packages of a model, into a store."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pixpod.engine.compilation.compile import (
    PACKAGE_OPTIONS,
    compile_key_of,
    compile_model,
    find_regions,
    prepare,
)
from pixpod.engine.compilation.store import CompiledStore, Package, UnusablePackage
from pixpod.engine.model import LoadedModel
from pixpod_tools.compile.exporting import CannotPackage, build_package, samples, watch_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of region, for which one region stands."""

    component: str
    kind: str
    region: nn.Module


def list_tasks(model: LoadedModel) -> tuple[Task, ...]:
    return tuple(
        Task(component=spec.component, kind=kind, region=regions[0])
        for spec in model.spec.family.regions
        for kind, regions in find_regions(model.components[spec.component], spec).items()
    )


def tasks_left(
    model: LoadedModel, store: CompiledStore, *, is_anew: bool = False
) -> tuple[Task, ...]:
    """What is not in the store yet, or is damaged there."""
    prepare(model)
    compile_key = compile_key_of(model.device)

    def is_there(kind: str) -> bool:
        try:
            return store.find(compile_key, kind) is not None
        except UnusablePackage:
            return False

    return tuple(task for task in list_tasks(model) if is_anew or not is_there(task.kind))


def build_packages(
    model: LoadedModel, tasks: Sequence[Task], store: CompiledStore, directory: Path
) -> Iterator[Package]:
    """Compile these kinds, one by one. The model must be as `tasks_left` has left it.

    Raises CannotPackage, and the errors of `CompiledStore.put`.
    """
    if not tasks:
        return
    compile_key = compile_key_of(model.device)
    regions = {task.kind: task.region for task in tasks}
    wide, narrow = (watch_calls(model, sample, regions) for sample in samples(model))
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".building-") as folder:
        for task in tasks:
            path = Path(folder) / f"{task.kind}.pt2"
            options = PACKAGE_OPTIONS[model.device.type]
            calls = wide[task.kind], narrow[task.kind]
            form = build_package(task.region, *calls, options, path)
            yield store.put(compile_key, task.kind, form, path)


def check_packages(model: LoadedModel, store: CompiledStore) -> None:
    """Use what was built as a worker would. Raises CannotPackage if it would not."""
    compilation = compile_model(model, store)
    refused = [name for name, way in compilation.modes.items() if way != "package"]
    if refused:
        reasons = "; ".join(compilation.warnings) or "its packages do not run"
        raise CannotPackage(f"{model.spec.name}: {', '.join(refused)}: {reasons}")
