"""Measures images with LoRAs, ControlNets, a given image and a refiner, all of them random."""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
from diffusers import UNet2DConditionModel

from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.component_key import extra_key
from pixpod.engine.model import Component, LoadedExtra, LoadedModel
from pixpod.families import Precision
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
from pixpod.testing.random_models import build_random_module
from pixpod.testing.runners import LocalRunner, count_graphs
from pixpod.testing.sample_requests import make_request
from pixpod_bench.figures import spread_percent
from pixpod_bench.gpu.memory import peak_bytes, reset_peak
from pixpod_bench.gpu.results import StackRow
from pixpod_bench.gpu.scenarios import StackScenario

FEWER_BLOCKS = {"num_layers": 6, "num_single_layers": 0}
"""Of the ControlNets for FLUX that are used most: six double blocks."""


REFINER = "refiner"
SDXL_CHANNELS = 320
REFINER_BLOCKS = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
}
"""Of stabilityai/stable-diffusion-xl-refiner-1.0, whose UNet takes 4.21 GiB in 16 bits."""


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


def add_random_nets(model: LoadedModel, names: Sequence[str]) -> None:
    """Load ControlNets with random weights, of the published sizes, as extras of the model."""
    spec = model.spec.family.controlnet
    assert spec is not None, "only families with ControlNets have such stacks"
    net_class, dtype = getattr(diffusers, spec.class_name), model.denoiser.dtype
    for name in set(names) - model.extras.keys():
        net = build_random_module(lambda: _net_like(net_class, model.denoiser), model.device, dtype)
        key = extra_key(name, Precision(model.identity.precision))
        model.extras[name] = LoadedExtra(module=net, key=key)


def add_random_refiner(model: LoadedModel) -> None:
    """Load a refiner with random weights as an extra: of SDXL's size beside SDXL."""
    if REFINER in model.extras:
        return
    config = refiner_config(model.denoiser.config, model.components["text_encoder_2"].config)
    refiner = build_random_module(
        lambda: UNet2DConditionModel.from_config(config), model.device, model.denoiser.dtype
    )
    key = extra_key(REFINER, Precision(model.identity.precision))
    model.extras[REFINER] = LoadedExtra(module=refiner, key=key)


def refiner_config(unet: Mapping[str, Any], text: Any) -> dict[str, Any]:  # noqa: ANN401 - untyped
    """Return the config of a refiner: it reads the second text encoder and an aesthetic score."""
    width = 5 * unet["addition_time_embed_dim"] + text.projection_dim
    blocks = REFINER_BLOCKS if unet["block_out_channels"][0] == SDXL_CHANNELS else {}
    return {
        **unet,
        **blocks,
        "cross_attention_dim": text.hidden_size,
        "projection_class_embeddings_input_dim": width,
    }


def _net_like(net_class: type[Any], denoiser: Component) -> Any:  # noqa: ANN401 - untyped
    if net_class is diffusers.FluxControlNetModel:
        return net_class.from_config({**denoiser.config, **FEWER_BLOCKS})
    return net_class.from_unet(denoiser, load_weights_from_unet=False)


def _requests(
    model: LoadedModel, scenario: StackScenario, folder: Path, *, first_seed: int
) -> list[GenerationRequest]:
    """Return a request for each row; LoRAs differ between rows, and between first seeds."""
    stack = scenario.stack
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
        mode=Mode.IMAGE_TO_IMAGE if stack.strength else Mode.TEXT_TO_IMAGE,
        sampling=replace(base.sampling, num_inference_steps=steps, strength=stack.strength),
        controls=tuple(
            ControlOptions(net=name, scale=1.0, start=0.0, end=1.0) for name in stack.nets
        ),
        conditions=Conditions(
            image=image if stack.strength else None, controls=(image,) * len(stack.nets)
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
    pixels = bytes(range(256)) * (3 * size_px * size_px // 256)
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
