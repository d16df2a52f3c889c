"""The largest batch that fits beside the components that have to be onloaded first."""

import pytest

from pixpod.catalog import load_catalog
from pixpod.engine.component_key import own_keys
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import Need
from pixpod.engine.memory.residency import ResidencyPlan
from pixpod.families import Precision
from pixpod.methods import StageName, StagePlan

SIZES = {"text_encoder": 10, "unet": 40, "vae": 20}
STAGES = (
    StagePlan(name=StageName.TEXT_ENCODE, components=("text_encoder",), fixed_bytes=5),
    StagePlan(name=StageName.DENOISE, components=("unet",), fixed_bytes=0, image_bytes=10),
    StagePlan(name=StageName.DECODE, components=("vae",), fixed_bytes=0, image_bytes=8),
)
MODELS = ("sd15", "sd15-tiny")


def need_of(model):
    keys = own_keys(load_catalog()[model], Precision.FLOAT16)
    return Need(
        model=model,
        precision=Precision.FLOAT16,
        denoiser="unet",
        keys=keys,
        sizes={keys[name]: size for name, size in SIZES.items()},
        stages=STAGES,
        saved_bytes=0,
    )


@pytest.mark.parametrize(
    ("offloaded", "batch_size"),
    [
        pytest.param((), 8, id="nothing: 80 bytes are left"),
        pytest.param(("unet",), 4, id="denoiser: 40 of them are its own"),
        pytest.param(("vae",), 7, id="vae: decoding is the limit"),
        pytest.param(("text_encoder",), 8, id="text encoder: it is gone by then"),
        pytest.param(("unet", "vae"), 4, id="denoiser and vae take turns"),
    ],
)
def test_offloaded_components_take_their_bytes_from_the_batch(offloaded, batch_size):
    """Of either model; the other one's do not count."""
    needs = tuple(need_of(model) for model in MODELS)
    sizes = {key: size for need in needs for key, size in need.sizes.items()}
    away = {key: size for key, size in sizes.items() if key.component in offloaded}
    resident = {key: size for key, size in sizes.items() if key not in away}
    budget = Budget(gpu_bytes=80 + sum(resident.values()), overhead_bytes=0)
    plan = ResidencyPlan(needs=needs, budget=budget, resident=resident, offloaded=away)
    for model in MODELS:
        assert plan.max_batch_size(model, STAGES, 16) == batch_size
