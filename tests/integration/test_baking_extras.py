"""Extras are baked like components of models, and served from where they were baked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.broken_weights import flip
from support.control_images import cases, images_of, largest_difference
from support.tiny_models import Desk, build_tiny_worker

from pixpod.catalog import load_catalog
from pixpod.errors import InvalidSettings, ModelUnavailable
from pixpod.extras import load_extras
from pixpod.families import Precision
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.extras import bake_extra
from pixpod_tools.bake.recipes import parse_extra, parse_recipe
from pixpod_tools.bake.sources import SourceOptions
from pixpod_tools.bake.verify import verify_directory

EXTRAS = load_extras()
NAME = "sdxl-canny-tiny"
SHIPPED = SOURCE_WEIGHTS_DIR / "tiny" / "extras" / NAME


def bake_one(directory, precision=Precision.BFLOAT16, source=None, extra=EXTRAS[NAME]):
    options = SourceOptions(location=source, own_models=SOURCE_WEIGHTS_DIR)
    bake_extra(directory, extra, precision, options, 10**9)


def problems(directory):
    manifest = read_manifest(directory)
    return verify_directory(directory, manifest, load_catalog(), lambda size: None, EXTRAS)


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT32])
def test_baked_net_has_the_same_weights(tmp_path, precision):
    bake_one(tmp_path, precision)
    (entry,) = read_manifest(tmp_path).values()
    assert (entry.is_extra, entry.precision, entry.licence) == (True, precision, "MIT")
    stored = load_file(tmp_path / NAME / "diffusion_pytorch_model.safetensors")
    shipped = load_file(SHIPPED / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == shipped.keys()
    assert all(torch.equal(stored[name].bfloat16(), shipped[name]) for name in stored)
    assert problems(tmp_path) == []


def test_second_bake_writes_nothing(tmp_path):
    bake_one(tmp_path)
    before = (tmp_path / NAME / "config.json").stat().st_mtime_ns
    bake_one(tmp_path)
    assert (tmp_path / NAME / "config.json").stat().st_mtime_ns == before


def test_net_is_baked_from_a_folder_of_its_own(tmp_path):
    bake_one(tmp_path, source=str(SHIPPED))
    assert read_manifest(tmp_path)[NAME].revision.startswith("local-")


def test_folder_of_another_class_is_refused(tmp_path):
    unet = SOURCE_WEIGHTS_DIR / "tiny" / "sdxl-tiny" / "unet"
    with pytest.raises(ModelUnavailable, match="expected a ControlNetModel, got a UNet2D"):
        bake_one(tmp_path, source=str(unet))


def test_baked_refiner_has_the_same_weights(tmp_path):
    bake_one(tmp_path, extra=EXTRAS["sdxl-refiner-tiny"])
    name = "diffusion_pytorch_model.safetensors"
    stored = load_file(tmp_path / "sdxl-refiner-tiny" / name)
    shipped = load_file(SOURCE_WEIGHTS_DIR / "tiny" / "sdxl-tiny" / "unet" / name)
    assert stored.keys() == shipped.keys()
    assert all(torch.equal(stored[each], shipped[each]) for each in stored)
    assert problems(tmp_path) == []


def test_baked_upscaler_has_the_same_weights(tmp_path):
    extra, precision = parse_extra("swin2sr-x2-tiny", EXTRAS)
    assert precision is Precision.FLOAT32
    bake_one(tmp_path, precision, extra=extra)
    stored, shipped = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / extra.name, SHIPPED.with_name(extra.name))
    )
    assert stored.keys() == shipped.keys()
    assert all(torch.equal(stored[each].bfloat16(), shipped[each]) for each in stored)
    assert problems(tmp_path) == []


def test_damage_is_found(tmp_path):
    bake_one(tmp_path)
    flip(tmp_path / NAME / "diffusion_pytorch_model.safetensors")
    assert problems(tmp_path) != []


@pytest.mark.parametrize("text", ["canny", f"{NAME}=float8_dynamic", f"{NAME}="])
def test_notation_is_checked(text):
    if text.endswith("="):
        assert parse_extra(text, EXTRAS)[1] is Precision.BFLOAT16
    else:
        with pytest.raises(InvalidSettings, match="--extra"):
            parse_extra(text, EXTRAS)


def test_baked_net_gives_the_images_of_the_shipped_one(tmp_path):
    """In 32 bits, which also the model has: no value differs."""
    weights = tmp_path / "weights"
    options = SourceOptions(location=None, own_models=SOURCE_WEIGHTS_DIR)
    bake(weights, parse_recipe("sdxl-tiny=bfloat16"), load_catalog(), options, 10**9)
    bake_one(weights, Precision.FLOAT32)
    baked, shipped = (run_in(tmp_path, directory) for directory in (weights, SOURCE_WEIGHTS_DIR))
    assert largest_difference(baked, shipped) == 0


def run_in(tmp_path, weights: Path):
    worker = build_tiny_worker(
        tmp_path / "out", PIXPOD_WEIGHTS_DIR=str(weights), PIXPOD_MODELS="sdxl-tiny"
    )
    worker.start()
    [case] = cases(1)
    try:
        job = case.job("sdxl-tiny", case.control(), num_inference_steps=2)
        return images_of(Desk(worker).replies([job]))
    finally:
        worker.stop()
