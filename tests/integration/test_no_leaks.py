"""Nothing of a job stays in a worker, whatever it used and however it ended.

Jobs over three models and all features, in random order; a third of them are cancelled, run out of
time or memory, name a broken file or fail in a step. After each, plain images are what they were.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.control_images import as_png, cases
from support.image_prompts import weights_with_adapters
from support.leaks import Fault, injecting_faults, snapshot_of
from support.lora_worker import LORAS
from support.tiny_models import WITH_EXTRAS, Desk, build_tiny_worker, to_pixels
from tqdm import tqdm

from pixpod.job import Quality

SEED = 16
STEPS = 4
LIMIT_MS = 800
"""Of jobs that run out of time; the worker leaves them half of it."""

FAULTS = ("cancel", "bad lora", "out of memory", "exception", "timeout")
CODES = {
    "none": {"completed"},
    "cancel": {"cancelled"},
    "bad lora": {"adapter_unusable"},
    "out of memory": {"completed", "out_of_memory"},
    "exception": {"internal_error"},
    "timeout": {"deadline_exceeded"},
}
OTHER_PLACES = {"encode": "image", "upscale": "upscale"}
"""Places that jobs with a field have."""

CASES = cases(8)
NETS = {"flux-tiny": ["canny"], "sdxl-tiny": ["canny", "depth"], "sd15-tiny": ["canny"]}


@dataclass
class Trial:
    """A job, and the fault that it meets; `place` is where."""

    job: dict[str, Any]
    fault: str
    place: str
    skip: int
    times: int


def random_faults(chance: random.Random, count: int) -> list[str]:
    """One for each of so many jobs: a third are faults, each kind equally often."""
    faults = [FAULTS[number % len(FAULTS)] for number in range(count // 3)]
    faults += ["none"] * (count - len(faults))
    chance.shuffle(faults)
    return faults


def random_trial(chance: random.Random, fault: str) -> Trial:
    model = chance.choice(WITH_EXTRAS)
    case = chance.choice(CASES)
    job = case.job(model, num_inference_steps=STEPS, num_images=chance.choice((1, 2)))
    job |= {"prompt": f"{job['prompt']} {chance.random()}", "seed": chance.randrange(1000)}
    for feature in FEATURES:
        if chance.random() < 0.4:
            job |= feature(chance, model, case)
    if fault == "bad lora":
        job["loras"] = [{"source": f"{_short(model)}-broken", "scale": 1}]
    others = [place for place, field in OTHER_PLACES.items() if field in job]
    place = chance.choice(("text", "denoise", "decode", *others))
    if fault == "timeout":
        place = "denoise"
    skip = chance.randrange(2) if place == "denoise" else 0
    return Trial(job, fault, place, skip, times=chance.randint(1, 5))


def _short(model: str) -> str:
    return model.removesuffix("-tiny")


def _source(chance, model, case):
    source = chance.choice(CASES).given.copy()
    source[0, 0] = [chance.randrange(256) for _ in range(3)]  # never seen before
    given = {"image": as_png(source), "strength": chance.choice((0.6, 0.9))}
    if chance.random() < 0.5:
        mask = np.zeros(source.shape[:2], np.uint8)
        mask[:, chance.choice((16, 32)) :] = 255
        given["mask"] = as_png(mask)
    return given


def _loras(chance, model, case):
    if model == "sd15-tiny":
        return {}
    styles = chance.sample(("frame", "bar"), chance.randint(1, 2))
    return {
        "loras": [
            {"source": f"{_short(model)}-{style}", "scale": chance.choice((0.5, 1.0))}
            for style in styles
        ]
    }


def _controls(chance, model, case):
    chosen = chance.sample(NETS[model], chance.randint(1, len(NETS[model])))
    return _nets(case, chosen)


def _nets(case, types):
    return {"controlnets": [case.control(type, scale=0.8) for type in types]}


def _made_controls(chance, model, case):
    photo = chance.choice(CASES).given
    control = {"type": "canny", "image": as_png(photo), "preprocess": True}
    return {"controlnets": [control], "output": {"controls": True}}


def _image_prompt(chance, model, case):
    images = [as_png(chance.choice(CASES).given) for _ in range(chance.randint(1, 2))]
    return {"ip_adapter": {"images": images, "scale": chance.choice((0.5, 1.0))}}


def _refiner(chance, model, case):
    if model != "sdxl-tiny":
        return {}
    return {"refiner": {"high_noise_frac": 0.75}}  # a step, also with the least strength


def _upscale(chance, model, case):
    return {"upscale": 2}


FEATURES = (_source, _loras, _controls, _made_controls, _image_prompt, _refiner, _upscale)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for path in LORAS.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    for model in WITH_EXTRAS:
        (folder / f"{_short(model)}-broken.safetensors").write_bytes(b"\x08" + bytes(15))
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_LORA_DIR=str(folder),
        **weights_with_adapters(tmp_path_factory.mktemp("adapters")),
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def snapshots_of(desk):
    """Of all models, with everything onloaded: what is offloaded has no content."""
    loader = desk.worker.engine.loader
    snapshots = []
    for name in WITH_EXTRAS:
        runnable = loader.load(name, Quality.DEFAULT).result()
        model = runnable.loaded
        with runnable.runner.placement.pinning(model, (*model.components, *model.extras)):
            snapshots.append(snapshot_of(model))
    return snapshots


def plain_images(desk):
    jobs = [
        {"model": model, "prompt": CASES[0].scene.caption, "seed": 3, "num_inference_steps": 2}
        for model in WITH_EXTRAS
    ]
    return [to_pixels(reply["images"][0]) for reply in desk.replies(jobs)]


def outcome_of(desk, trial, faults):
    """Run a trial; return the code of its error, `completed` or `cancelled`."""

    async def run():
        loop, reached, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        acts = {
            "cancel": lambda: (loop.call_soon_threadsafe(reached.set), ended.wait(10)),
            "out of memory": lambda: _raise(torch.OutOfMemoryError("injected")),
            "exception": lambda: _raise(RuntimeError("injected")),
            "timeout": lambda: time.sleep(LIMIT_MS / 1000),
        }
        if trial.fault in acts:
            times = trial.times if trial.fault == "out of memory" else 1
            faults.current = Fault(trial.place, acts[trial.fault], trial.skip, times)
        raw = {"id": "trial", "input": trial.job}
        if trial.fault == "timeout":
            raw["policy"] = {"executionTimeout": LIMIT_MS}
        task = asyncio.create_task(desk.worker.handle(raw))
        if trial.fault == "cancel":
            arrival = asyncio.create_task(reached.wait())
            await asyncio.wait({task, arrival}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            ended.set()
        with contextlib.suppress(asyncio.CancelledError):
            reply = await task
            return str(reply["error"]).partition(":")[0] if "error" in reply else "completed"
        return "cancelled"

    outcome = asyncio.run(run())
    struck, faults.current = faults.current, None
    assert struck is None or struck.num_acts, f"{trial} met no fault"
    return outcome


def _raise(error):
    raise error


def load_all(desk, chance):
    """Run each feature of each model once."""
    for model in WITH_EXTRAS:
        features = [feature(chance, model, CASES[0]) for feature in FEATURES]
        for given in (*features, _nets(CASES[0], NETS[model])):
            reply = desk.reply(**CASES[0].job(model, num_inference_steps=STEPS, **given))
            assert "error" not in reply, reply["error"]


def check(desk, count):
    """Run so many trials. Returns how many ended how, by fault and outcome."""
    chance = random.Random(SEED)
    ends: Counter[str] = Counter()
    load_all(desk, chance)
    plain = plain_images(desk)
    snapshots = snapshots_of(desk)
    with injecting_faults() as faults:
        for number, fault in enumerate(tqdm(random_faults(chance, count), desc="jobs")):
            trial = random_trial(chance, fault)
            outcome = outcome_of(desk, trial, faults)
            assert outcome in CODES[trial.fault], f"job {number}: {trial}"
            ends[f"{trial.fault}: {outcome}"] += 1
            for model, before, after in zip(WITH_EXTRAS, plain, plain_images(desk), strict=True):
                assert np.array_equal(before, after), f"{model} after job {number}: {trial}"
    assert snapshots_of(desk) == snapshots
    return ends


def test_40_jobs_leave_nothing(desk):
    check(desk, 40)


@pytest.mark.acceptance
def test_300_jobs_leave_nothing(desk):
    ends = check(desk, 300)
    print()
    for end, number in sorted(ends.items()):
        print(f"{end:32} {number:4}")
    assert ends["out of memory: completed"] and ends["out of memory: out_of_memory"]
