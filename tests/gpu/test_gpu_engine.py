"""What must hold on a GPU before any figure counts: numbers, bytes, memory."""

import asyncio
import gc
from typing import Any

import pytest
import torch
from support.likeness import psnr_db
from support.mid_size_flux import MID_SIZE_FLUX_TRANSFORMER

from pixpod.bootstrap import build_engine
from pixpod.engine.precision.quantization import quantize_float8_dynamic
from pixpod.families import FLUX, Precision
from pixpod.settings import Settings
from pixpod.testing.random_models import build_random_component
from pixpod_tools.bake.character_tokenizers import clip_tokenizer

pytestmark = pytest.mark.gpu

TINY_MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
IMAGE_TOKENS, TEXT_TOKENS = 64, 32


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
    transformer = build_random_component(
        FLUX.component("transformer"),
        MID_SIZE_FLUX_TRANSFORMER,
        clip_tokenizer(),
        float8_device,
        torch.bfloat16,
    )
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
def test_neighbours_never_change_an_image(
    load_random, generate, make_request, float8_device, precision
):
    model = load_random("flux-tiny", precision, float8_device)
    one = generate(model, make_request("flux-tiny", seeds=(1, 2, 3, 4)))
    two = generate(model, make_request("flux-tiny", seeds=(1, 70, 80, 90)))
    assert one[0] == two[0]
    assert one[1] != two[1]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_same_seed_gives_the_same_bytes(load_tiny, generate, make_request, device, name):
    model = load_tiny(name, Precision.BFLOAT16, device)
    first = generate(model, make_request(name, seeds=(5, 6)))
    generate(model, make_request(name, seeds=(9,), steps=3))
    assert generate(model, make_request(name, seeds=(5, 6))) == first


@pytest.mark.parametrize("name", TINY_MODELS)
def test_gpu_generates_the_image_of_the_cpu(load_tiny, generate, make_request, cuda, name):
    """Which needs the same noise to begin with."""
    request = make_request(name, seeds=(5,))
    (on_cpu,), (on_gpu,) = (
        generate(load_tiny(name, Precision.FLOAT32, place), request)
        for place in (torch.device("cpu"), cuda)
    )
    assert psnr_db(on_cpu, on_gpu) >= 40


def test_stopped_engine_gives_its_memory_back(make_request, cuda, float8_device):
    """A first engine fills what libraries keep for themselves; the second must leave no more."""
    _run_one_engine(make_request)
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    _run_one_engine(make_request)
    gc.collect()
    assert torch.cuda.memory_allocated(cuda) <= before


def _run_one_engine(make_request) -> None:
    environ = {
        "PIXPOD_DEVICE": "cuda",
        "PIXPOD_PRECISION": "flux-tiny=float8_dynamic",
        "PIXPOD_COMPILE": "false",
    }
    engine = build_engine(Settings.from_env(environ))
    engine.start()
    for name in TINY_MODELS:
        asyncio.run(engine.generate(make_request(name)))
    engine.stop()
