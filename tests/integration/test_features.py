"""What docs/features.md says goes together does, and what it says is refused is."""

import numpy as np
import pytest
import torch
from support import loading
from support.control_images import as_png, cases
from support.image_prompts import weights_with_adapters
from support.tiny_models import Desk, build_tiny_worker

from pixpod.contract.job_input import JobInput
from pixpod.families import Precision
from pixpod.testing.random_loras import random_lora
from pixpod_tools.generate.features_page import (
    FEATURES,
    IMAGE,
    LORA,
    MASK,
    MODELS,
    refused_fields,
)

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
}
"""Fields that go with all others."""

DETAILS = {"strength", "resize", "mask_blur"}
"""Fields of others that are in the table."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for name in MODELS:
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


def job_of(feature, model):
    """The job of a row, with images and a LoRA of this model in the place of the page's names."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    real = {IMAGE: as_png(cases(1)[0].given), MASK: as_png(mask), LORA: f"{model}-style"}

    def with_real(value):
        if isinstance(value, dict):
            return {key: with_real(each) for key, each in value.items()}
        if isinstance(value, list):
            return [with_real(each) for each in value]
        return real.get(value, value) if isinstance(value, str) else value

    return {"model": model, "prompt": "a red circle", **with_real(dict(feature.fields))}


@pytest.mark.parametrize("model", MODELS)
def test_each_job_ends_as_the_table_says(desk, model):
    for feature in FEATURES:
        reply = desk.reply(**job_of(feature, model))
        refused = refused_fields(feature, model)
        if not refused:
            assert "error" not in reply, f"{feature.title}: {reply['error']}"
        else:
            assert reply["error"].startswith("invalid_input: "), feature.title
            for field in refused:
                assert field in reply["error"], feature.title


def test_each_field_is_in_the_table_or_goes_with_all_others():
    listed = {field for feature in FEATURES for field in feature.fields}
    assert listed | PLAIN | DETAILS == set(JobInput.model_fields)
