"""What docs/features.md says goes together does, and what it says is refused is."""

import pytest
import torch
from support import loading
from support.factories import CATALOG
from support.feature_jobs import check_features
from support.image_prompts import weights_with_adapters
from support.tiny_models import MODELS as TINY
from support.tiny_models import Desk, build_tiny_worker

from pixpod.contract.job_input import JobInput
from pixpod.families import Precision
from pixpod.testing.random_loras import random_lora
from pixpod_tools.generate.features_page import FEATURES

PLAIN = {
    "model",
    "prompt",
    "prompt_2",
    "negative_prompt",
    "width",
    "height",
    "num_images",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "max_sequence_length",
    "on_long_prompt",
    "deterministic",
    "output",
    "webhook_url",
    "webhook_events",
    "idempotency_key",
    "api_version",
    "safety",
    "stack",
}
"""Fields that go with all others."""

DETAILS = {"strength", "resize", "mask_blur"}
"""Fields of others that are in the table."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for name in TINY:
        loaded = loading.load(name, loading.shipped(name), Precision.FLOAT32, torch.device("cpu"))
        random_lora(loaded, folder, 1).rename(folder / f"{name}-style.safetensors")
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_LORA_DIR=str(folder),
        **weights_with_adapters(tmp_path_factory.mktemp("adapters")),
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


@pytest.mark.parametrize("model", TINY)
def test_each_job_ends_as_the_table_says(desk, model):
    check_features(desk, model, CATALOG[model].family.name)


def test_each_field_is_in_the_table_or_goes_with_all_others():
    listed = {field for feature in FEATURES for field in feature.fields}
    assert listed | PLAIN | DETAILS == set(JobInput.model_fields)
