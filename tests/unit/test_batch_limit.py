"""The largest batch that fits beside what has to come to the GPU first."""

import pytest

from pixpod.engine.component_key import own_keys
from pixpod.catalog import load_catalog
from pixpod.engine.memory.needs import Need
from pixpod.engine.memory.residency import Budget, make_plan
from pixpod.families import Precision
from pixpod.methods import StageName, StagePlan

SIZES = {"text_encoder": 10, "unet": 40, "vae": 20}
STAGES = (
    StagePlan(name=StageName.TEXT_ENCODE, components=("text_encoder",), fixed_bytes=0),
    StagePlan(name=StageName.DENOISE, components=("unet",), fixed_bytes=0, image_bytes=10),
    StagePlan(name=StageName.DECODE, components=("vae",), fixed_bytes=0, image_bytes=5),
)


def need(model):
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


def plan_for(gpu_bytes, *models):
    return make_plan([need(model) for model in models], Budget(gpu_bytes=gpu_bytes, overhead_bytes=0))


def test_resident_components_leave_the_rest_to_images():
    plan = plan_for(120, "sd15")
    assert not plan.offloaded
    assert plan.max_batch_size("sd15", STAGES, 8) == 5


@pytest.mark.parametrize(("gpu_bytes", "batch_size"), [(110, 1), (120, 2), (130, 3), (180, 8)])
def test_offloaded_denoiser_takes_its_bytes_from_the_batch(gpu_bytes, batch_size):
    """60 bytes of either model stay, but not both of the UNets."""
    plan = plan_for(gpu_bytes, "sd15", "sd15-tiny")
    print(plan.summary(), plan.resident, plan.offloaded)
    assert plan.max_batch_size("sd15", STAGES, 8) == batch_size
