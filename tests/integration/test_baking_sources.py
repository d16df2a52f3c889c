"""Bakes from a hub on this machine, from folders and from single files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from pydantic import SecretStr
from safetensors.torch import load_file, save, save_file
from support.hub_server import TOKEN, Repository, running_hub
from support.ldm_layout import single_file_of

from pixpod.catalog import load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import (
    HubUnavailable,
    InvalidSettings,
    LicenceNotAccepted,
    ModelUnavailable,
    WeightsUnreadable,
)
from pixpod.families import Precision
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions, read_token

CACHE = Path(__file__).resolve().parents[2] / "model_cache"
TINY = CACHE / "tiny"
REVISION, VAE_REVISION = "1" * 40, "2" * 40
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"

SDXL = replace(
    load_catalog()["sdxl-tiny"],
    repository="org/sdxl",
    revision=REVISION,
    vae_repository="org/vae",
    vae_revision=VAE_REVISION,
)
RECIPE = ModelRecipe(model="sdxl-tiny", plan=QuantizationPlan(precision=Precision.BFLOAT16))


def own_vae():
    """The VAE of the models, told apart by its config."""
    files = {path.name: path.read_bytes() for path in (TINY / "shared/vae").iterdir()}
    config = json.loads(files["config.json"])
    return files | {"config.json": json.dumps({**config, "scaling_factor": 0.5}).encode()}


@pytest.fixture
def hub():
    repositories = {
        "org/sdxl": Repository.of_folder(TINY / "sdxl-tiny", REVISION),
        "org/vae": Repository(revision=VAE_REVISION, files=own_vae()),
    }
    others = {"LICENSE.md": b"terms", "sdxl.ckpt": b"x" * 100}
    repositories["org/sdxl"].files = {**repositories["org/sdxl"].files, **others}
    with running_hub(repositories) as server:
        yield server


@pytest.fixture
def bake_from_hub(hub, tmp_path):
    def run(spec=SDXL, **options):
        given = {"location": "hub", "own_models": CACHE, "endpoint": hub.url, **options}
        directory = tmp_path / "weights"
        bake(directory, RECIPE, {spec.name: spec}, SourceOptions(**given), 10**9)
        return directory

    return run


def test_pinned_revision_is_fetched_with_its_other_vae(hub, bake_from_hub):
    directory = bake_from_hub()
    entry = read_manifest(directory)["sdxl-tiny"]
    assert (entry.revision, entry.repository) == (REVISION, "org/sdxl")
    assert "VAE of org/vae" in str(entry.recipe)
    vae = json.loads((directory / "sdxl-tiny/vae/config.json").read_text(encoding="utf-8"))
    assert vae["scaling_factor"] == 0.5
    assert (directory / "sdxl-tiny/LICENSE.md").read_text(encoding="utf-8") == "terms"
    fetched = [path for path, _ in hub.downloads]
    assert "sdxl.ckpt" not in fetched
    assert f"vae/{VAE_WEIGHTS}" not in fetched
    assert {path.name for path in directory.iterdir()} == {"manifest.toml", "sdxl-tiny"}


def test_broken_download_goes_on_next_time(hub, bake_from_hub):
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub.breaks[weights] = [0] * 50
    with pytest.raises(HubUnavailable, match="retry"):
        bake_from_hub()
    fetched = {path for path, _ in hub.downloads} - {weights}
    hub.breaks.clear()
    hub.downloads.clear()
    directory = bake_from_hub()
    assert read_manifest(directory).keys() == {"sdxl-tiny"}
    again = {path for path, _ in hub.downloads}
    assert weights in again
    assert "text_encoder/model.safetensors" in fetched - again


def test_gated_repository_without_a_token_says_what_to_do(hub, bake_from_hub):
    hub.repositories["org/sdxl"].is_gated = True
    with pytest.raises(ModelUnavailable, match=r"accept its conditions at .*org/sdxl"):
        bake_from_hub()
    directory = bake_from_hub(token=SecretStr(TOKEN))
    assert read_manifest(directory)["sdxl-tiny"].repository == "org/sdxl"


def test_missing_revision_is_named(bake_from_hub):
    with pytest.raises(ModelUnavailable, match="3" * 40):
        bake_from_hub(revision="3" * 40)


def test_model_without_a_pinned_revision_is_baked_from_the_newest_commit(bake_from_hub):
    entry = read_manifest(bake_from_hub(spec=replace(SDXL, revision=None)))["sdxl-tiny"]
    assert entry.revision == REVISION


def test_model_without_a_repository_is_refused(bake_from_hub):
    with pytest.raises(InvalidSettings, match="no repository in the catalog"):
        bake_from_hub(spec=replace(SDXL, repository=None))


def test_unet_of_another_repository_takes_the_place_of_the_models_own(hub, bake_from_hub):
    tensors = load_file(TINY / "sdxl-tiny/unet" / VAE_WEIGHTS)
    tensors["conv_out.bias"] = tensors["conv_out.bias"] + 1
    files = {"4step_unet.safetensors": save(tensors), "8step_unet.safetensors": b"x"}
    hub.repositories["org/unets"] = Repository(revision="4" * 40, files=files)
    spec = replace(SDXL, denoiser_repository="org/unets", denoiser_file="4step_unet.safetensors")
    directory = bake_from_hub(spec=spec)
    recipe = str(read_manifest(directory)["sdxl-tiny"].recipe)
    assert recipe.endswith(f"denoiser of org/unets/4step_unet.safetensors at {'4' * 40}")
    (file,) = (directory / "sdxl-tiny/unet").glob("*.safetensors")
    expected = tensors["conv_out.bias"].to(torch.bfloat16)
    assert torch.equal(load_file(file)["conv_out.bias"], expected)
    fetched = [path for path, _ in hub.downloads]
    assert "unet/config.json" in fetched
    assert not {f"unet/{VAE_WEIGHTS}", "8step_unet.safetensors"} & {*fetched}


def test_licence_that_was_not_accepted_stops_before_anything_is_fetched(hub, bake_from_hub):
    spec = replace(SDXL, licence="terms-1", licence_must_be_accepted=True)
    with pytest.raises(LicenceNotAccepted, match="--accept-licence terms-1"):
        bake_from_hub(spec=spec)
    assert hub.downloads == []
    bake_from_hub(spec=spec, accepted_licences=frozenset({"terms-1"}))


# --- the token ------------------------------------------------------------------------------


def test_token_is_read_from_a_secret_file_and_not_shown(tmp_path):
    file = tmp_path / "hf_token"
    file.write_text("hf_secret\n", encoding="utf-8")
    token = read_token(file)
    assert token == SecretStr("hf_secret")
    assert "hf_secret" not in repr(token)


def test_token_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert read_token(None) == SecretStr("hf_of_the_environment")


@pytest.mark.parametrize(
    "content", [b"", b"two words", b"\xff\xfe"], ids=["empty", "words", "no text"]
)
def test_file_without_a_token_is_refused_without_its_content(tmp_path, content):
    file = tmp_path / "hf_token"
    file.write_bytes(content)
    with pytest.raises(InvalidSettings, match="one token of the hub") as caught:
        read_token(file)
    assert "words" not in str(caught.value)


# --- folders --------------------------------------------------------------------------------

CATALOG = load_catalog()
FLUX = ModelRecipe(model="flux-tiny", plan=QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC))


def bake_flux(directory, location, **options):
    source = SourceOptions(location=str(location), own_models=CACHE, **options)
    bake(directory, FLUX, CATALOG, source, 10**9)
    return read_manifest(directory)["flux-tiny"]


def test_snapshot_of_the_hubs_cache_has_its_commit_as_revision(tmp_path):
    snapshot = tmp_path / "snapshots" / REVISION
    snapshot.parent.mkdir()
    snapshot.symlink_to(TINY / "flux-tiny")
    # a link resolves to its target, so that the folder itself must carry the name
    assert bake_flux(tmp_path / "a", snapshot).revision.startswith("local-")
    snapshot.unlink()
    snapshot.mkdir()
    for path in (TINY / "flux-tiny").iterdir():
        (snapshot / path.name).symlink_to(path.resolve())
    assert bake_flux(tmp_path / "b", snapshot).revision == REVISION


def test_other_weights_in_the_same_folder_are_baked_anew(tmp_path):
    source = changed_transformer(tmp_path, lambda tensors: None)
    before = bake_flux(tmp_path / "weights", source)
    assert bake_flux(tmp_path / "weights", source) == before
    weights = source / "transformer" / VAE_WEIGHTS
    tensors = load_file(weights)
    save_file({**tensors, "proj_out.bias": tensors["proj_out.bias"] + 1}, weights)
    after = bake_flux(tmp_path / "weights", source)
    assert after.revision != before.revision
    assert after.files != before.files


def test_revision_of_a_folder_is_what_the_caller_says(tmp_path):
    assert bake_flux(tmp_path, TINY / "flux-tiny", revision="mine").revision == "mine"


def test_weights_directory_without_the_model_is_named(tmp_path):
    (tmp_path / "manifest.toml").write_text("format = 2\n", encoding="utf-8")
    with pytest.raises(InvalidSettings, match="holds no model, not flux-tiny"):
        bake_flux(tmp_path / "weights", tmp_path)


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InvalidSettings, match=r"model_index\.json"):
        bake_flux(tmp_path / "weights", tmp_path)


def changed_transformer(tmp_path, change):
    """The tiny FLUX with other tensors in its transformer."""
    source = tmp_path / "source"
    source.mkdir()
    for path in (TINY / "flux-tiny").iterdir():
        if path.name != "transformer":
            (source / path.name).symlink_to(path.resolve())
    (source / "transformer").mkdir()
    original = TINY / "flux-tiny/transformer"
    (source / "transformer/config.json").write_bytes((original / "config.json").read_bytes())
    tensors = load_file(original / VAE_WEIGHTS)
    change(tensors)
    save_file(tensors, source / "transformer" / VAE_WEIGHTS)
    return source


def leave_one_out(tensors):
    del tensors["proj_out.bias"]


def make_one_smaller(tensors):
    tensors["proj_out.bias"] = tensors["proj_out.bias"][:-1]


def put_nan_in(tensors):
    tensors["proj_out.bias"][0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leave_one_out, "has no tensor proj_out.bias"),
        (make_one_smaller, r"tensor proj_out.bias: expected \(64,\), got \(63,\)"),
        (put_nan_in, "tensor proj_out.bias has values that are no numbers"),
    ],
)
def test_wrong_tensor_is_named(tmp_path, change, message):
    source = changed_transformer(tmp_path, change)
    with pytest.raises(WeightsUnreadable, match=message):
        bake_flux(tmp_path / "weights", source)


# --- single files ---------------------------------------------------------------------------


def test_single_file_takes_the_rest_from_the_config_folder(tmp_path):
    tensors = load_file(TINY / "flux-tiny/transformer" / VAE_WEIGHTS)
    tensors["proj_out.bias"] += 1
    file = tmp_path / "flux.safetensors"
    save_file(tensors, file)
    entry = bake_flux(tmp_path / "weights", file, config=TINY / "flux-tiny")
    assert entry.revision.startswith("flux.safetensors-")
    folder = tmp_path / "weights/flux-tiny/transformer"
    transformer = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(transformer.proj_out.bias, tensors["proj_out.bias"])
    assert not list((tmp_path / "weights").glob(".single-file-*"))


def test_single_file_in_its_authors_layout_gives_the_same_tensors(tmp_path):
    source = TINY / "sd15-tiny"
    file = tmp_path / "sd15.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in single_file_of(source).items()}
    save_file(tensors, file)
    recipe = ModelRecipe(model="sd15-tiny", plan=QuantizationPlan(precision=Precision.BFLOAT16))
    options = SourceOptions(
        location=str(file), own_models=CACHE, config=configs_of(source, tmp_path)
    )
    bake(tmp_path / "from_file", recipe, CATALOG, options, 10**9)
    options = SourceOptions(location=None, own_models=CACHE)
    bake(tmp_path / "from_folder", recipe, CATALOG, options, 10**9)
    files = [
        path.relative_to(tmp_path / "from_folder")
        for path in (tmp_path / "from_folder").rglob("*.safetensors")
    ]
    assert len(files) == 3
    for path in files:
        converted, copied = (
            load_file(tmp_path / "from_file" / path),
            load_file(tmp_path / "from_folder" / path),
        )
        assert converted.keys() == copied.keys()
        assert all(torch.equal(converted[name], copied[name]) for name in copied)


def configs_of(source, tmp_path):
    """All of a pipeline but its weights."""
    target = tmp_path / "configs"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_single_file_without_configs_says_what_it_needs(tmp_path):
    file = tmp_path / "flux.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InvalidSettings, match="--config FOLDER"):
        bake_flux(tmp_path / "weights", file)


def test_single_file_of_another_model_is_named(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ModelUnavailable, match="family FLUX, got a file of an unknown one"):
        bake_flux(tmp_path / "weights", file, config=TINY / "flux-tiny")
