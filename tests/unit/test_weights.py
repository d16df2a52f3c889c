"""A model's folder: its layout, which files of it are read, and its licence."""

import json
from dataclasses import replace

import pytest
from support.weights_directories import CATALOG, WEIGHTS_NAME, add_model, files_of, write_files

from pixpod.errors import LicenceNotAccepted, ModelUnavailable, WeightsUnreadable
from pixpod.weights.layout import (
    Weights,
    check_layout,
    check_licence,
    component_folder,
    files_to_read,
    tensor_paths,
)
from pixpod.weights.sources.base import weights_of

SDXL = CATALOG["sdxl"]
FLUX_DEV = CATALOG["flux-dev"]


@pytest.fixture
def weights(tmp_path):
    return weights_of(tmp_path, add_model(tmp_path, "sdxl"), "baked")


def test_good_folder_passes(weights):
    check_layout(SDXL, weights)


def test_missing_folder_is_the_deployments_fault(weights, tmp_path):
    with pytest.raises(ModelUnavailable, match=r"model_index\.json: No such file"):
        check_layout(SDXL, replace(weights, folder=tmp_path / "absent"))


def test_folder_that_is_a_file_is_the_deployments_fault(weights, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match=r"model_index\.json: Not a directory"):
        check_layout(SDXL, replace(weights, folder=tmp_path / "file"))


def test_folder_of_another_pipeline_is_the_deployments_fault(weights):
    with pytest.raises(
        ModelUnavailable, match="expected a FluxPipeline, got a StableDiffusionXLPipeline"
    ):
        check_layout(FLUX_DEV, weights)


@pytest.mark.parametrize("text", ["{}", "[]", '"text"'])
def test_folder_in_another_layout_is_the_deployments_fault(weights, text):
    (weights.folder / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="no model index"):
        check_layout(SDXL, weights)


@pytest.mark.parametrize("data", [b"", b'{"_class_na', b"\xff\xff"])
def test_damaged_index_is_the_hosts_fault(weights, data):
    (weights.folder / "model_index.json").write_bytes(data)
    with pytest.raises(WeightsUnreadable, match="cannot be read as JSON"):
        check_layout(SDXL, weights)


def test_missing_vae_is_the_deployments_fault(weights, tmp_path):
    with pytest.raises(ModelUnavailable, match="holds no VAE"):
        check_layout(SDXL, replace(weights, vae=tmp_path / "absent"))


def test_separate_vae_takes_the_place_of_the_models_own(weights, tmp_path):
    write_files(tmp_path / "other", {"config.json": b"{}", WEIGHTS_NAME: b"1234"})
    changed = replace(weights, vae=tmp_path / "other")
    check_layout(SDXL, changed)
    assert component_folder(changed, "vae") == tmp_path / "other"
    assert component_folder(changed, "unet") == weights.folder / "unet"
    assert files_to_read(SDXL, changed)[tmp_path / "other" / WEIGHTS_NAME].size_bytes == 4


def test_files_are_read_in_the_order_of_the_components_as_the_manifest_lists_them(weights):
    found = files_to_read(SDXL, weights)
    assert [path.parent.name for path in found] == list(SDXL.family.component_names)
    assert set(found.values()) <= set(weights.files)


def test_file_that_nobody_lists_is_expected_as_it_is(weights):
    found = files_to_read(SDXL, replace(weights, files=()))
    assert {path.stat().st_size: "" for path in found} == {
        file.size_bytes: file.sha256 for file in found.values()
    }


def test_missing_component_is_said(weights):
    (weights.folder / "unet" / WEIGHTS_NAME).unlink()
    with pytest.raises(WeightsUnreadable, match=r"unet: holds no \.safetensors"):
        files_to_read(SDXL, weights)


def test_shards_are_those_of_the_index_in_order(tmp_path):
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"weight_map": {"b": shards[2], "a": shards[1], "c": shards[0], "d": shards[2]}}
    text = json.dumps(index).encode()
    write_files(tmp_path, {"model.safetensors.index.json": text, "model.safetensors": b"old"})
    assert [path.name for path in tensor_paths(tmp_path)] == shards


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}'])
def test_damaged_index_of_shards_is_the_hosts_fault(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsUnreadable, match="index of shards"):
        tensor_paths(tmp_path)


def test_licence_that_must_be_accepted_is_refused_until_it_is():
    with pytest.raises(LicenceNotAccepted, match="PIXPOD_ACCEPT_LICENCES"):
        check_licence(FLUX_DEV, frozenset({"MIT"}))
    check_licence(FLUX_DEV, frozenset({FLUX_DEV.licence}))
    check_licence(CATALOG["flux-schnell"], frozenset())


def test_weights_directory_of_the_tests_is_in_the_layout(tmp_path):
    for name in ("flux-dev", "sd15"):
        write_files(tmp_path / name, files_of(CATALOG[name]))
        check_layout(CATALOG[name], Weights(folder=tmp_path / name, revision="1", source="baked"))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["m.safetensors", "m.non_ema.safetensors"], "m.safetensors"),
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
    ],
)
def test_half_of_the_bytes_is_read_where_a_repository_has_them(tmp_path, names, chosen):
    for name in names:
        (tmp_path / name).touch()
    assert tensor_paths(tmp_path) == (tmp_path / chosen,)


@pytest.mark.parametrize("variant", ["", "fp16."])
def test_shards_are_those_of_the_index(tmp_path, variant):
    shards = [f"model.{variant}-0000{number}-of-00002.safetensors" for number in (2, 1)]
    index = {"weight_map": {"b": shards[0], "a": shards[1], "c": shards[0]}}
    (tmp_path / f"model.safetensors.index.{variant}json").write_text(json.dumps(index))
    assert tensor_paths(tmp_path) == tuple(tmp_path / shard for shard in sorted(shards))
