"""The manifest of a weights directory, and what is said when it is not as it says."""

import json

import pytest

from pixpod.catalog import load_catalog
from pixpod.engine.weights import PIPELINE_CLASS, Manifest
from pixpod.errors import InvalidSettings, ModelUnavailable, WeightsUnreadable
from pixpod.settings import SOURCE_WEIGHTS_DIR

SDXL = load_catalog()["sdxl"]
ENTRY = '[sdxl]\npath = "sdxl"\nrevision = "abc"\n'


@pytest.fixture
def manifest(tmp_path):
    def write(text):
        (tmp_path / "manifest.toml").write_text(text, encoding="utf-8")
        return Manifest.read(tmp_path)

    return write


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "sdxl" / "model_index.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"_class_name": PIPELINE_CLASS[SDXL.family]}), encoding="utf-8")
    return path


def test_listed_model_is_found(manifest, index, tmp_path):
    held = manifest(ENTRY)
    weights = held.get_weights(SDXL)
    assert held.names == ("sdxl",)
    assert (weights.folder, weights.revision, weights.vae) == (tmp_path / "sdxl", "abc", None)
    assert weights.source == "baked"


def test_separate_vae_is_found(manifest, index, tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    assert manifest(ENTRY + 'vae = "vae"').get_weights(SDXL).vae == tmp_path / "vae"


def test_empty_manifest_holds_nothing(manifest):
    held = manifest("")
    assert held.names == ()
    with pytest.raises(ModelUnavailable, match="lists nothing"):
        held.get_weights(SDXL)


def test_shipped_manifest_lists_models_of_the_catalog():
    names = Manifest.read(SOURCE_WEIGHTS_DIR).names
    assert names
    assert set(names) <= load_catalog().keys()


def test_missing_manifest_names_the_variable(tmp_path):
    with pytest.raises(InvalidSettings, match="PIXPOD_WEIGHTS_DIR"):
        Manifest.read(tmp_path / "absent")


def test_broken_toml_names_the_variable(manifest):
    with pytest.raises(InvalidSettings, match="PIXPOD_WEIGHTS_DIR"):
        manifest("[sdxl")


@pytest.mark.parametrize(
    "text",
    [
        "sdxl = 1",
        "sdxl = []",
        '[sdxl]\npath = "sdxl"',
        '[sdxl]\nrevision = "abc"',
        '[sdxl]\npath = "sdxl"\nrevision = 5',
        '[sdxl]\npath = 5\nrevision = "abc"',
        ENTRY + "vae = true",
        ENTRY + 'vea = "vae"',
    ],
)
def test_broken_entry_names_file_and_model(manifest, text):
    with pytest.raises(InvalidSettings, match=r"manifest\.toml: model 'sdxl': accepted is a table"):
        manifest(text)


def test_unlisted_model_says_what_is_listed(manifest):
    with pytest.raises(ModelUnavailable, match=r"sdxl is not in .*manifest\.toml.* lists sd15"):
        manifest(ENTRY.replace("sdxl", "sd15")).get_weights(SDXL)


def test_missing_folder_is_the_deployments_fault(manifest):
    with pytest.raises(ModelUnavailable, match=r"model_index\.json: No such file"):
        manifest(ENTRY).get_weights(SDXL)


def test_folder_that_is_a_file_is_the_deployments_fault(manifest, tmp_path):
    (tmp_path / "sdxl").touch()
    with pytest.raises(ModelUnavailable, match=r"model_index\.json: Not a directory"):
        manifest(ENTRY).get_weights(SDXL)


def test_folder_of_another_pipeline_is_the_deployments_fault(manifest, index):
    index.write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="of a FluxPipeline, expected is StableDiffusionXL"):
        manifest(ENTRY).get_weights(SDXL)


@pytest.mark.parametrize("text", ["{}", "[]", '"text"'])
def test_folder_in_another_layout_is_the_deployments_fault(manifest, index, text):
    index.write_text(text, encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="no model index"):
        manifest(ENTRY).get_weights(SDXL)


@pytest.mark.parametrize("data", [b"", b'{"_class_na', b"\xff\xff"])
def test_damaged_index_is_the_hosts_fault(manifest, index, data):
    index.write_bytes(data)
    with pytest.raises(WeightsUnreadable, match="cannot be read as JSON"):
        manifest(ENTRY).get_weights(SDXL)


def test_missing_vae_is_the_deployments_fault(manifest, index):
    with pytest.raises(ModelUnavailable, match="holds no VAE"):
        manifest(ENTRY + 'vae = "vae"').get_weights(SDXL)
