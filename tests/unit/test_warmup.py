"""Warm-ups use sizes that the model serves, at little cost."""

from dataclasses import replace

import pytest

from pixpod.catalog import load_catalog
from pixpod.contract.payload import parse_job
from pixpod.contract.rules import Capabilities
from pixpod.engine.scheduling.warmup import stack_warmups, warmup_requests
from pixpod.extras import load_extras
from pixpod.job import Delivery, LoraSlots, Quality
from pixpod.stacks import Stack

CATALOG = load_catalog()


@pytest.mark.parametrize("name", CATALOG)
def test_each_model_is_warmed_at_its_default_size(name):
    spec = CATALOG[name]
    size = spec.defaults.width, spec.defaults.height
    (request,) = warmup_requests(spec, [size], lambda request: 1)
    assert (request.model, request.width, request.height) == (name, *size)
    assert request.sampling.num_inference_steps == (4 if name == "sdxl-lightning" else 2)


@pytest.mark.parametrize("name", CATALOG)
def test_request_is_one_that_a_job_could_make(name):
    """A warm-up that takes other code paths than a job would warm the wrong ones."""
    spec = CATALOG[name]
    size = spec.defaults.width, spec.defaults.height
    (request,) = warmup_requests(spec, [size], lambda request: 1)
    qualities = dict.fromkeys(CATALOG, (Quality.DEFAULT,))
    capabilities = Capabilities(models=CATALOG, qualities=qualities, deliveries=(Delivery.INLINE,))
    given = {
        "model": name,
        "prompt": request.prompts.prompt,
        "num_inference_steps": request.sampling.num_inference_steps,
        "seed": list(request.seeds),
        "on_long_prompt": "truncate",
    }
    if request.conditions.image is not None:
        given["image"] = "https://app.example/image.png"
    if request.conditions.mask is not None:
        given["mask"] = "https://app.example/mask.png"
    parsed = parse_job({"id": "job", "input": given}, capabilities).request
    assert replace(parsed, conditions=request.conditions) == request


def test_sizes_that_the_model_does_not_serve_are_left_out():
    spec = CATALOG["sd15"]
    sizes = [(512, 512), (2048, 2048), (64, 64), (516, 512), (512, 768)]
    requests = warmup_requests(spec, sizes, lambda request: 1)
    assert [(r.width, r.height) for r in requests] == [(512, 512), (512, 768)]


def test_largest_batch_is_warmed_besides_a_single_image():
    requests = warmup_requests(CATALOG["sdxl"], [(1024, 1024), (1536, 1024)], max_batch_size)
    assert [len(request.seeds) for request in requests] == [1, 4, 1]


def max_batch_size(request):
    return 4 if request.width == 1024 else 1


def test_stack_is_warmed_once_with_all_its_parts():
    stack = Stack(model="sdxl-tiny", extras=("sdxl-canny-tiny",), lora_rank=16)
    sizes = [(8, 8), (64, 64), (32, 64)]
    (request,) = stack_warmups(stack, CATALOG["sdxl-tiny"], load_extras(), sizes)
    assert (request.width, request.height, len(request.seeds)) == (64, 64, 1)
    assert [control.net for control in request.controls] == ["sdxl-canny-tiny"]
    assert request.conditions.slots == LoraSlots(rank=16, is_whole=False)
    assert request.sampling.num_inference_steps <= 2
    assert not list(stack_warmups(stack, CATALOG["sdxl-tiny"], load_extras(), []))
