"""Bakes single files with the transformers of later families, in their authors' layouts."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ldm_layout import vae_tensors
from support.random_pipelines import FLOAT32, write_entries, write_flux2_klein, write_z_image
from support.transformer_layouts import original_tensors

from pixpod.catalog import load_catalog
from pixpod.errors import ModelUnavailable
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
WRITE = {"flux2-klein": write_flux2_klein, "z-image": write_z_image}


@pytest.fixture(params=["sd35", "flux2-klein", "z-image"])
def family(request):
    return request.param


@pytest.fixture
def published(family, tmp_path):
    """An entry of a catalog, and the pipeline's folder."""
    if family == "sd35":
        return load_catalog()["sd35-tiny"], SOURCE_WEIGHTS_DIR / "tiny/sd35-tiny"
    WRITE[family](tmp_path / "repository")
    spec, _ = write_entries(tmp_path / "models.toml", family)
    return spec, tmp_path / "repository"


@pytest.fixture
def bake_file(published, tmp_path):
    """Bakes the transformer under its authors' names, and what else a file has."""
    spec, folder = published

    def run(spec=spec, prefix="", **others):
        tensors = original_tensors(published[0].family.name, folder / "transformer")
        named = {prefix + name: each.contiguous() for name, each in tensors.items()}
        file = tmp_path / "mine.safetensors"
        save_file({**named, **others}, file)
        options = SourceOptions(location=str(file), own_models=tmp_path, config=folder)
        recipe = ModelRecipe(model=spec.name, plan=FLOAT32)
        bake(tmp_path / "weights", recipe, {spec.name: spec}, options, 10**9)
        return load_file(tmp_path / "weights" / spec.name / WEIGHTS)

    return run


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_file_gives_the_tensors_of_the_folder(published, bake_file, prefix):
    expected = load_file(published[1] / WEIGHTS)
    found = bake_file(prefix=prefix)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


def test_entry_of_another_family_is_refused(bake_file, published):
    title = published[0].family.title
    with pytest.raises(ModelUnavailable, match=f"of the family FLUX, got {title}"):
        bake_file(load_catalog()["flux-tiny"])


@pytest.mark.parametrize("family", ["sd35", "z-image"], indirect=True)
def test_file_may_have_the_vae(bake_file, published, tmp_path):
    spec, folder = published
    # that of the folder is not read
    others = {name: each.contiguous() + 1 for name, each in vae_tensors(folder / "vae").items()}
    bake_file(prefix="model.diffusion_model.", **others)
    expected = load_file(folder / VAE_WEIGHTS)
    found = load_file(tmp_path / "weights" / spec.name / VAE_WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], (expected[name] + 1).float()) for name in expected)


@pytest.mark.parametrize("family", ["flux2-klein"], indirect=True)
def test_vae_that_diffusers_does_not_convert_is_named(bake_file):
    with pytest.raises(ModelUnavailable, match="diffusers converts no AutoencoderKLFlux2"):
        bake_file(**{"vae.encoder.conv_in.weight": torch.zeros(1)})
