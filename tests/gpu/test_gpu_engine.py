"""What must hold on a card before any figure counts: numbers, bytes, memory."""

import asyncio
import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixpod.baking.architectures import ARCHITECTURES, MID_SIZE_FLUX_TRANSFORMER
from pixpod.bootstrap import build_engine
from pixpod.catalog import Precision, load_catalog
from pixpod.engine.base import CancelToken
from pixpod.engine.drawing import draw
from pixpod.engine.quantization import quantize_float8_dynamic
from pixpod.errors import OutOfMemory
from pixpod.job import GenerationRequest
from pixpod.settings import Settings
from pixpod_bench.measure import make_request
from pixpod_bench.random_models import build_flux_transformer, build_random_model
from pixpod_bench.scenarios import Scenario, Variant

pytestmark = pytest.mark.gpu

TINY_MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
IMAGE_TOKENS, TEXT_TOKENS = 64, 32


def request_for(model: str, **changes) -> GenerationRequest:
    variant = Variant(model=model, precision=Precision.BFLOAT16)
    scenario = Scenario(variant=variant, size_px=64, batch=1, num_inference_steps=4)
    return replace(make_request(load_catalog()[model], scenario), **changes)


def pictures(model, request: GenerationRequest) -> list[bytes]:
    return [image.pixels for image in draw(model, request, CancelToken()).images]


def transformer_inputs(device, seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    """Unit-scale latents and embeddings for the mid-size transformer, the same on every device."""
    config: Any = MID_SIZE_FLUX_TRANSFORMER
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "hidden_states": (rows, IMAGE_TOKENS, config["in_channels"]),
        "encoder_hidden_states": (rows, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": (rows, config["pooled_projection_dim"]),
    }
    return {
        name: torch.randn(shape, generator=generator).to(device, torch.bfloat16)
        for name, shape in shapes.items()
    }


@torch.inference_mode()
def predict(transformer, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    device = inputs["hidden_states"].device
    rows = len(inputs["hidden_states"])
    return transformer(
        **inputs,
        timestep=torch.full((rows,), 0.5, device=device, dtype=torch.bfloat16),
        guidance=torch.full((rows,), 3.5, device=device),
        img_ids=torch.zeros(IMAGE_TOKENS, 3, device=device),
        txt_ids=torch.zeros(TEXT_TOKENS, 3, device=device),
        return_dict=False,
    )[0]


@pytest.fixture(scope="module")
def mid_size(float8_device):
    """A transformer that is float8 by now, and what it predicted in bfloat16."""
    torch.manual_seed(0)
    transformer = build_flux_transformer(MID_SIZE_FLUX_TRANSFORMER, float8_device, torch.bfloat16)
    in_bfloat16 = predict(transformer, transformer_inputs(float8_device, seed=1))
    quantize_float8_dynamic(transformer, float8_device)
    return transformer, in_bfloat16


def test_float8_agrees_with_bfloat16(mid_size, float8_device):
    transformer, in_bfloat16 = mid_size
    in_float8 = predict(transformer, transformer_inputs(float8_device, seed=1))
    error = (in_float8 - in_bfloat16).float().norm() / in_bfloat16.float().norm()
    assert 1e-4 < error < 0.1, "not float8 at all below, wrong above"


def test_float8_row_does_not_depend_on_its_neighbour(mid_size, float8_device):
    transformer, _ = mid_size
    inputs = transformer_inputs(float8_device, seed=1)
    louder = transformer_inputs(float8_device, seed=2)
    others = {name: torch.stack([value[0], 10 * louder[name][1]]) for name, value in inputs.items()}
    one, two = predict(transformer, inputs), predict(transformer, others)
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC])
def test_neighbours_never_change_a_picture(float8_device, precision):
    spec = load_catalog()["flux-tiny"]
    model = build_random_model(ARCHITECTURES["flux-tiny"], spec, precision, float8_device)
    one = pictures(model, request_for("flux-tiny", seeds=(1, 2, 3, 4)))
    two = pictures(model, request_for("flux-tiny", seeds=(1, 70, 80, 90)))
    assert one[0] == two[0]
    assert one[1] != two[1]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_same_seed_gives_the_same_bytes(load_tiny, device, name):
    model = load_tiny(name, Precision.BFLOAT16, device)
    first = pictures(model, request_for(name, seeds=(5, 6)))
    pictures(model, request_for(name, seeds=(9,), num_inference_steps=3))
    assert pictures(model, request_for(name, seeds=(5, 6))) == first


@pytest.mark.parametrize("name", TINY_MODELS)
def test_card_draws_the_picture_of_the_cpu(load_tiny, cuda, name):
    request = request_for(name, seeds=(5,))
    on_cpu, on_card = (
        np.frombuffer(pictures(load_tiny(name, Precision.FLOAT32, place), request)[0], np.uint8)
        for place in (torch.device("cpu"), cuda)
    )
    error = np.mean((on_cpu.astype(float) - on_card.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40


def test_too_large_a_request_is_out_of_memory_and_the_next_one_is_drawn(cuda):
    spec = load_catalog()["flux-tiny"]
    model = build_random_model(ARCHITECTURES["flux-tiny"], spec, Precision.BFLOAT16, cuda)
    before = pictures(model, request_for("flux-tiny"))
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / total_bytes, cuda)
    try:
        with pytest.raises(OutOfMemory, match="no memory for 8 images of 2048x2048"):
            pictures(model, request_for("flux-tiny", width=2048, height=2048, seeds=range(8)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert pictures(model, request_for("flux-tiny")) == before


def test_stopped_engine_gives_its_memory_back(cuda, float8_device):
    """A first engine fills what libraries keep for themselves; the second must leave no more."""
    _run_one_engine()
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    _run_one_engine()
    assert torch.cuda.memory_allocated(cuda) <= before


def _run_one_engine() -> None:
    environ = {"PIXPOD_DEVICE": "cuda", "PIXPOD_PRECISION": "flux-tiny=float8_dynamic"}
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    for name in TINY_MODELS:
        asyncio.run(engine.generate(request_for(name)))
    engine.stop()
