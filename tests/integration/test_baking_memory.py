"""A bake holds one tensor at a time, however large the model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.mid_size_flux import MID_SIZE_FLUX_TRANSFORMER

from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod_tools.bake.architectures import get_architecture
from pixpod_tools.bake.random_cache import plan_model, write_random_model
from pixpod_tools.bake.recipes import ModelRecipe

ROOT = Path(__file__).resolve().parents[2]

ROOM_BYTES = 40_000_000
"""For the bake's own code, and what an allocator keeps."""

BAKE = """
import json, sys, threading
from pathlib import Path
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import parse_recipe
from pixpod_tools.bake.sources import SourceOptions
from pixpod.catalog import load_catalog

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def bake_to(folder, source):
    options = SourceOptions(location=source, own_models=Path("model_cache"))
    recipe = parse_recipe("flux-tiny=float8_dynamic,t5=float8_dynamic")
    bake(Path(folder), recipe, load_catalog(), options, 10**9)

to, source = sys.argv[1:]
bake_to(to + "/first", None)  # all that is imported late, and the allocator's first blocks
before, peak, is_over = anonymous_bytes(), 0, threading.Event()

def watch():
    global peak
    while not is_over.wait(0.002):
        peak = max(peak, anonymous_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
bake_to(to + "/second", source)
is_over.set()
watcher.join()
print(json.dumps(peak - before))
"""


@pytest.fixture
def mid_size_source(tmp_path):
    """150 MB in which no tensor has more than 3; and the bytes of its largest one."""
    tiny = get_architecture("flux-tiny")
    configs = {**tiny.components, "transformer": MID_SIZE_FLUX_TRANSFORMER}
    architecture = replace(tiny, components=configs)
    recipe = ModelRecipe(model="flux-tiny", plan=QuantizationPlan(precision=Precision.BFLOAT16))
    components = plan_model(architecture, recipe)
    write_random_model(tmp_path / "source", architecture, components, 10**9, lambda count: None)
    sizes = [tensor.size_bytes for component in components for tensor in component.tensors]
    assert sum(sizes) > 140_000_000
    return tmp_path / "source", max(sizes)


def test_memory_does_not_grow_with_the_model(mid_size_source, tmp_path):
    source, largest_bytes = mid_size_source
    run = subprocess.run(
        [sys.executable, "-c", BAKE, tmp_path / "weights", source],
        cwd=ROOT,
        env={"PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) <= 3 * largest_bytes + ROOM_BYTES
