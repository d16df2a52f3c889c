"""Measures images with LoRAs, ControlNets, given images and a refiner, all of them random."""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.model import LoadedModel
from pixpod.job import (
    Conditions,
    ControlOptions,
    GenerationRequest,
    InputImage,
    LoraFile,
    Mode,
    RawImage,
    RefinerOptions,
)
from pixpod.testing.random_loras import random_lora
from pixpod.testing.runners import LocalRunner, count_graphs
from pixpod.testing.sample_requests import make_request
from pixpod_bench.figures import spread_percent
from pixpod_bench.gpu.memory import peak_bytes, reset_peak
from pixpod_bench.gpu.random_extras import (
    REFINER,
    add_random_image_prompt,
    add_random_nets,
    add_random_refiner,
)
from pixpod_bench.gpu.results import StackRow
from pixpod_bench.gpu.scenarios import StackScenario


def measure_stack(
    model: LoadedModel, scenario: StackScenario, compiled_dir: Path, *, warmups: int, repeats: int
) -> StackRow:
    """Generate one image for each row of the batch."""
    add_random_nets(model, scenario.stack.nets)
    if scenario.stack.refiner_steps:
        add_random_refiner(model)
    store = CompiledStore(compiled_dir)
    runner = LocalRunner(model, compile_copy=lambda copied: compile_model(copied, store))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        requests = _requests(model, scenario, files, first_seed=0)
        graphs_before = count_graphs()
        first_s = _generate(runner, requests, is_alone=scenario.is_alone)
        for _ in range(warmups - 1):
            _generate(runner, requests, is_alone=scenario.is_alone)
        graphs = count_graphs()
        reset_peak(model.device)
        times = [_generate(runner, requests, is_alone=scenario.is_alone) for _ in range(repeats)]
        peak = peak_bytes(model.device)
        others = _requests(model, scenario, files, first_seed=1000)
        others_s = _generate(runner, others, is_alone=scenario.is_alone)
    seconds = statistics.median(times)
    return StackRow(
        model=scenario.variant.model,
        precision=scenario.variant.precision,
        size_px=scenario.size_px,
        batch_size=scenario.batch_size,
        num_inference_steps=scenario.num_inference_steps,
        stack=scenario.stack.name,
        is_alone=scenario.is_alone,
        repeats=repeats,
        seconds=seconds,
        spread_percent=spread_percent(times),
        first_s=first_s,
        swap_s=others_s - seconds if any(scenario.stack.loras) else None,
        graphs=graphs - graphs_before,
        late_graphs=count_graphs() - graphs,
        peak_bytes=peak,
    )


def _requests(
    model: LoadedModel, scenario: StackScenario, folder: Path, *, first_seed: int
) -> list[GenerationRequest]:
    """Return a request for each row; LoRAs differ between rows, and between first seeds."""
    stack = scenario.stack
    prompt = add_random_image_prompt(model, stack.num_images) if stack.num_images else None
    counts = [*stack.loras, *[0] * scenario.batch_size][: scenario.batch_size]
    base = make_request(
        model.spec,
        size_px=scenario.size_px,
        num_inference_steps=scenario.num_inference_steps,
        text_tokens=scenario.text_tokens,
    )
    image = _image(scenario.size_px)
    steps = scenario.num_inference_steps + stack.refiner_steps
    refiner = RefinerOptions(name=REFINER, num_inference_steps=stack.refiner_steps)
    base = replace(
        base,
        refiner=refiner if stack.refiner_steps else None,
        image_prompt=prompt,
        mode=Mode.IMAGE_TO_IMAGE if stack.strength else Mode.TEXT_TO_IMAGE,
        sampling=replace(base.sampling, num_inference_steps=steps, strength=stack.strength),
        controls=tuple(
            ControlOptions(net=name, scale=1.0, start=0.0, end=1.0) for name in stack.nets
        ),
        conditions=Conditions(
            image=image if stack.strength else None,
            controls=(image,) * len(stack.nets),
            prompt_images=(_image(prompt.size_px),) * stack.num_images if prompt else (),
        ),
    )
    requests = []
    for row, count in enumerate(counts):
        seeds = range(first_seed + 10 * row, first_seed + 10 * row + count)
        loras = [_lora_file(random_lora(model, folder, seed, rank=stack.rank)) for seed in seeds]
        loras.sort(key=lambda lora: lora.sha256)
        conditions = replace(base.conditions, loras=tuple(loras))
        requests.append(replace(base, seeds=(row,), conditions=conditions))
    return requests


def _lora_file(path: Path) -> LoraFile:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoraFile(field="loras", name=path.stem, sha256=digest, path=path, scale=1.0)


def _image(size_px: int) -> InputImage:
    num_bytes = 3 * size_px * size_px
    pixels = (bytes(range(256)) * (num_bytes // 256 + 1))[:num_bytes]
    digest = hashlib.sha256(pixels).hexdigest()
    return InputImage(raw=RawImage(width=size_px, height=size_px, pixels=pixels), digest=digest)


def _generate(
    runner: LocalRunner, requests: Sequence[GenerationRequest], *, is_alone: bool
) -> float:
    """Return the seconds that all rows took."""
    started = time.perf_counter()
    for batch in [[each] for each in requests] if is_alone else [requests]:
        runner.generate(*batch)
    return time.perf_counter() - started
