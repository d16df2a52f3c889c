"""Measures the first images of a process: eagerly, with packages, and compiled just in time.

Each way runs in a process of its own, with empty caches of inductor, one after the other.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import torch

from pixpod.catalog import ModelSpec
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.model import Compilation, LoadedModel
from pixpod_tools.compile.building import build_packages, tasks_left
from pixpod_tools.compile.exporting import CannotPackage
from pixpod_tools.compile.models import load
from pixpod_tools.generate.markdown import table

WARM_IMAGES = 5


class Way(StrEnum):
    """The way in which a model's regions run."""

    EAGER = "eager"
    PACKAGES = "packages"
    COMPILER = "compiler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Measured times. `ready_s` is the time that compiling adds to a load, `first_s` that of the
    first image of the default size, `other_size_s` that of the first of another size and
    `two_rows_s` that of the first batch of two; `warm_s` is the best of more default-size images.
    """

    ready_s: float
    first_s: float
    other_size_s: float
    two_rows_s: float
    warm_s: float


def measure(
    spec: ModelSpec, weights_dir: Path, device: torch.device, *, catalog_file: Path | None
) -> Iterator[str]:
    """Yield the lines of a Markdown table, and a JSON line. Builds the packages first."""
    with tempfile.TemporaryDirectory() as folder:
        store_dir = Path(folder) / "compiled"
        started = time.perf_counter()
        model = load(spec, weights_dir, device)
        store = CompiledStore(store_dir)
        packages = list(build_packages(model, tasks_left(model, store), store, store_dir))
        build_s = time.perf_counter() - started
        del model
        found = {
            way: _measure_in_process(way, spec, weights_dir, device, store_dir, catalog_file)
            for way in Way
        }
        size_mb = sum(package.size_bytes for package in packages) / 1e6
    built = f"{len(packages)} packages, {size_mb:.1f} MB, built in {build_s:.0f} s"
    yield f"{spec.name} on {device}: {built}"
    yield "\n" + _table(found)
    yield json.dumps({way: asdict(times) for way, times in found.items()})


def measure_here(
    spec: ModelSpec, weights_dir: Path, device: torch.device, store_dir: Path, way: Way
) -> str:
    """Measure this process; return its times as JSON. Raises CannotPackage for unused packages."""
    model = load(spec, weights_dir, device)
    started = time.perf_counter()
    if way is not Way.EAGER:
        empty = store_dir.with_name("none")
        store = CompiledStore(store_dir if way is Way.PACKAGES else empty)
        backend = "inductor" if way is Way.COMPILER else None
        _check(compile_model(model, store, backend=backend), way)
    ready_s = time.perf_counter() - started
    width, height = spec.defaults.width, spec.defaults.height
    times = Times(
        ready_s=ready_s,
        first_s=_time_image(model, width, height),
        other_size_s=_time_image(model, width // 2, height),
        two_rows_s=_time_image(model, width, height, num_rows=2),
        warm_s=min(_time_image(model, width, height) for _ in range(WARM_IMAGES)),
    )
    return json.dumps(asdict(times))


def _measure_in_process(
    way: Way,
    spec: ModelSpec,
    weights_dir: Path,
    device: torch.device,
    store_dir: Path,
    catalog_file: Path | None,
) -> Times:
    with tempfile.TemporaryDirectory() as caches:
        command = [sys.executable, "-m", "pixpod_tools.compile", f"--measure={spec.name}"]
        command += [f"--way={way}", f"--weights={weights_dir}", f"--to={store_dir}"]
        command += [f"--device={device.type}"]
        command += [f"--catalog={catalog_file}"] if catalog_file else []
        environ = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
            "TRITON_CACHE_DIR": f"{caches}/triton",
        }
        done = subprocess.run(  # noqa: S603 - this program
            command, env=environ, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise CannotPackage(f"{spec.name}: {way} ended with {done.returncode}")
    return Times(**json.loads(done.stdout.splitlines()[-1]))


def _check(compilation: Compilation, way: Way) -> None:
    expected = "package" if way is Way.PACKAGES else "jit"
    if set(compilation.modes.values()) != {expected}:
        raise CannotPackage(f"{way}: {compilation.modes}, {'; '.join(compilation.warnings)}")


def _time_image(model: LoadedModel, width: int, height: int, num_rows: int = 1) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        images = model.full_pipeline()(
            ["a photo of a lighthouse"] * num_rows,
            width=width,
            height=height,
            num_inference_steps=model.spec.defaults.num_inference_steps,
            output_type="pt",
        ).images
        images.sum().item()  # waits for the device
    return time.perf_counter() - started


def _table(found: Mapping[Way, Times]) -> str:
    fields = list(asdict(found[Way.EAGER]))
    titles = [field.removesuffix("_s").replace("_", " ") for field in fields]
    base = found[Way.EAGER].ready_s + found[Way.EAGER].first_s
    rows = [
        (
            way,
            *(f"{value:.2f}" for value in asdict(times).values()),
            f"{(times.ready_s + times.first_s) / base:.1f}",
        )
        for way, times in found.items()
    ]
    return table(("seconds", *titles, "start and first, to eager"), rows)
