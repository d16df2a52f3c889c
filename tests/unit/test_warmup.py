"""What is drawn to warm a model up: sizes that it serves, at little cost."""

import pytest

from pixpod.catalog import load_catalog
from pixpod.engine.warmup import warmup_requests
from pixpod.job import Delivery
from pixpod.payload import parse_job
from pixpod.rules import Offer

CATALOG = load_catalog()


@pytest.mark.parametrize("name", CATALOG)
def test_each_model_is_warmed_at_its_default_size(name):
    spec = CATALOG[name]
    size = spec.defaults.width, spec.defaults.height
    (request,) = warmup_requests(spec, [size])
    assert (request.model, request.width, request.height) == (name, *size)
    assert request.num_inference_steps <= 2


@pytest.mark.parametrize("name", CATALOG)
def test_request_is_one_that_a_job_could_make(name):
    """A warm-up that takes other code paths than a job would warm the wrong ones."""
    spec = CATALOG[name]
    (request,) = warmup_requests(spec, [(spec.defaults.width, spec.defaults.height)])
    offer = Offer(models=CATALOG, deliveries=(Delivery.INLINE,))
    asked = {
        "model": name,
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        "seed": list(request.seeds),
        "on_long_prompt": "truncate",
    }
    assert parse_job({"id": "job", "input": asked}, offer).request == request


def test_sizes_that_the_model_does_not_serve_are_left_out():
    spec = CATALOG["sd15"]
    sizes = [(512, 512), (2048, 2048), (64, 64), (516, 512), (512, 768)]
    assert [(r.width, r.height) for r in warmup_requests(spec, sizes)] == [(512, 512), (512, 768)]
