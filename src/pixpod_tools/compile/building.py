"""Builds all packages of a model in a store."""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from pixpod.catalog import ModelSpec
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
from pixpod_tools.compile.models import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of region, with one region as its example."""

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
    """Return the kinds of regions whose packages the store lacks, or has damaged."""
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
    """Use the packages as a worker does. Raises CannotPackage if a worker would not use them."""
    compilation = compile_model(model, store)
    refused = [name for name, way in compilation.modes.items() if way != "package"]
    if refused:
        reasons = "; ".join(compilation.warnings) or "its packages do not run"
        raise CannotPackage(f"{model.spec.name}: {', '.join(refused)}: {reasons}")


def build_model(
    spec: ModelSpec, weights_dir: Path, device: torch.device, store_dir: Path, *, is_anew: bool
) -> str:
    """Build the missing packages of a model, or all, and check them; return a line about them."""
    model = load(spec, weights_dir, device)
    store = CompiledStore(store_dir)
    tasks = tasks_left(model, store, is_anew=is_anew)
    started = time.perf_counter()
    with tqdm(total=len(tasks), desc=spec.name, unit="kind", disable=not tasks) as bar:
        for package in build_packages(model, tasks, store, store_dir):
            bar.update()
            bar.write(f"  {package.size_bytes / 1e6:8.1f} MB  {package.kind}", file=sys.stdout)
    check_packages(model, store)
    seconds = time.perf_counter() - started
    built = f"{len(tasks)} built in {seconds:.0f} s" if tasks else "all there"
    return f"{spec.name} ({model.identity.precision}): {built}, checked"
