"""Many LoRAs in many jobs: memory, throughput, and what one of them costs. Long: acceptance."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import loading
from support.lora_worker import lora_desk

from pixpod.families import Precision
from pixpod.testing.random_loras import random_lora

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PROMPT = "a red circle on a blue background"
NUM_LORAS, NUM_JOBS, NUM_LATE = 50, 200, 150
MAX_RISE = 1.01
NUM_SHARED = 64


@pytest.fixture(scope="module")
def model():
    return loading.load("sdxl-tiny", loading.shipped("sdxl-tiny"), Precision.FLOAT32, CPU)


def rss():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1])


def write_loras(model, folder, count, *, rank=4):
    folder.mkdir()
    for number in range(count):
        random_lora(model, folder, number, rank=rank).rename(folder / f"lora-{number}.safetensors")
    return [f"lora-{number}" for number in range(count)]


def job(*names, **given):
    loras = [{"source": name, "scale": 0.8} for name in names]
    return {"model": "sdxl-tiny", "prompt": PROMPT, "loras": loras, "seed": 1, **given}


def test_memory_stays_and_files_are_found_again(model, tmp_path):
    """Files come from a server, so that the worker's cache is used."""
    names = write_loras(model, tmp_path / "files", NUM_LORAS)
    desk = lora_desk(tmp_path, "sdxl-tiny", PIXPOD_LORA_DIR="")
    desk.files |= {
        name: (tmp_path / "files" / f"{name}.safetensors").read_bytes() for name in names
    }
    rng = random.Random(0)
    sizes, hits, shares = [], [], []
    try:
        for number in range(NUM_JOBS):
            chosen = [names[number]] if number < NUM_LORAS else rng.sample(names, rng.randint(1, 4))
            reply = desk.reply(**job(*map(desk.url, chosen), num_inference_steps=4))
            assert "error" not in reply, reply["error"]
            sizes.append(rss())
            hits += [lora["cached"] for lora in reply["adapters"]] if number >= NUM_LORAS else []
            timings = reply["timings_ms"]
            if number >= NUM_LORAS and len(chosen) == 1:
                shares.append(timings["adapt"] / (timings["denoise"] + timings["decode"]))
    finally:
        desk.worker.stop()
    late = np.array(sizes[-NUM_LATE:], float)
    slope, start = np.polyfit(np.arange(NUM_LATE), late, 1)
    rise = 1 + slope * NUM_LATE / start
    print(f"RSS rises to {rise:.4f}, adapting takes {np.median(shares):.0%} of a job of 4 steps")
    assert all(hits)
    assert np.median(shares) <= 0.15
    assert rise <= MAX_RISE


def seconds(desk, jobs):
    started = time.perf_counter()
    for reply in desk.replies(jobs):
        assert "error" not in reply, reply["error"]
    return time.perf_counter() - started


def test_jobs_with_different_loras_gain_from_batches_as_jobs_with_the_same_one(model, tmp_path):
    names = write_loras(model, tmp_path / "files", NUM_SHARED)
    took = {}
    for batching in ("true", "false"):
        desk = lora_desk(
            tmp_path / batching,
            "sdxl-tiny",
            PIXPOD_LORA_DIR=str(tmp_path / "files"),
            PIXPOD_BATCHING=batching,
        )
        different = [job(name) for name in names]
        same = [job(names[0]) for _ in names]
        try:
            seconds(desk, different)  # files are read
            took["different", batching] = seconds(desk, different)
            took["same", batching] = seconds(desk, same)
        finally:
            desk.worker.stop()
    gain = took["different", "false"] / took["different", "true"]
    share = took["same", "true"] / took["different", "true"]
    print(f"{gain:.2f} times the throughput of single rows, {share:.2f} of one LoRA's")
    assert gain >= 1.5
    assert share >= 0.85


def test_cost_depends_on_the_rank_and_not_on_the_number(model, tmp_path):
    names = write_loras(model, tmp_path / "small", 4, rank=4)
    folder = tmp_path / "small"
    random_lora(model, folder, 99, rank=16).rename(folder / "large.safetensors")
    desk = lora_desk(tmp_path, "sdxl-tiny", PIXPOD_LORA_DIR=str(folder))
    times: dict[str, list[float]] = {"four": [], "one": []}
    given = {"num_inference_steps": 12}
    try:
        for _ in range(12):
            for kind, chosen in (("four", names), ("one", ["large"])):
                timings = desk.reply(**job(*chosen, **given))["timings_ms"]
                times[kind].append(timings["adapt"] + timings["denoise"])
    finally:
        desk.worker.stop()
    four, one = (float(np.median(times[kind][2:])) for kind in ("four", "one"))
    print(f"four LoRAs take {four / one:.3f} of one of their total rank")
    assert four / one <= 1.1


WITHOUT_PEFT = """
import importlib.abc, importlib.util, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(name)

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "peft" else find(name, *rest)
sys.meta_path.insert(0, Absent())
sys.path[:0] = ["src", "tests"]
from pathlib import Path
from support.lora_worker import lora_desk

desk = lora_desk(Path(sys.argv[1]), "sdxl-tiny")
loras = [{"source": "sdxl-frame"}, {"source": "sdxl-bar"}]
reply = desk.reply(model="sdxl-tiny", prompt="a red circle", loras=loras)
desk.worker.stop()
print(sorted(lora["name"] for lora in reply["adapters"]), "peft" in sys.modules)
"""


def test_peft_is_not_needed(tmp_path):
    command = [sys.executable, "-c", WITHOUT_PEFT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['sdxl-bar', 'sdxl-frame'] False"
