"""Where weights are looked for, and what is said of those that are not there or not whole."""

import logging
import os
from dataclasses import replace

import pytest
from support.weights_directories import (
    CATALOG,
    WEIGHTS_NAME,
    add_model,
    files_of,
    pinned,
    write_cached,
    write_files,
)

from pixpod.errors import InvalidSettings, ModelUnavailable, WeightsUnreadable
from pixpod.weights.sources import (
    BakedSource,
    HubSource,
    PlatformCacheSource,
    VolumeSource,
    WeightsLocator,
)

SDXL, SD15, FLUX_DEV, FLUX_TINY = (
    CATALOG[name] for name in ("sdxl", "sd15", "flux-dev", "flux-tiny")
)
_, PINNED_COMMIT = pinned(FLUX_DEV)
OTHER_COMMIT = "1" * 40


def cache_source(tmp_path):
    return PlatformCacheSource(tmp_path / "hub", weights_dir=tmp_path / "weights")


def write_flux(tmp_path, commit=PINNED_COMMIT, **options):
    files = files_of(FLUX_DEV) | {"flux1-dev.safetensors": b"all in one", "dev_grid.jpg": b"jpg"}
    return write_cached(tmp_path / "hub", pinned(FLUX_DEV)[0], commit, files, **options)


# --- baked -----------------------------------------------------------------------------------


def test_baked_model_is_found_as_the_manifest_says(tmp_path):
    entry = add_model(tmp_path, "sdxl", revision="abc")
    source = BakedSource(tmp_path)
    weights = source.find(SDXL)
    assert weights
    assert source.names == ("sdxl",)
    assert (weights.folder, weights.revision, weights.vae) == (tmp_path / "sdxl", "abc", None)
    assert (weights.source, weights.files) == ("baked", entry.files)
    assert source.fetch(SDXL) == weights


def test_model_that_is_not_baked_is_not_found(tmp_path):
    add_model(tmp_path, "sdxl")
    source = BakedSource(tmp_path)
    assert source.find(SD15) is None
    assert source.fetch(SD15) is None
    assert source.why_not(SD15) == f"{tmp_path}/manifest.toml lists sdxl"


def test_directory_without_a_manifest_holds_nothing(tmp_path):
    source = BakedSource(tmp_path / "absent")
    assert source.names == ()
    assert source.find(SDXL) is None
    assert source.why_not(SDXL) == f"{tmp_path}/absent has no manifest.toml"


def test_damaged_manifest_is_the_deployments_fault(tmp_path):
    (tmp_path / "manifest.toml").write_text("[models")
    with pytest.raises(InvalidSettings, match=r"manifest\.toml"):
        BakedSource(tmp_path)


@pytest.mark.parametrize("path", ["unet/config.json", f"vae/{WEIGHTS_NAME}", "model_index.json"])
def test_listed_file_that_is_missing_is_missing_from_the_image(tmp_path, path):
    add_model(tmp_path, "sdxl")
    (tmp_path / "sdxl" / path).unlink()
    with pytest.raises(ModelUnavailable, match=rf"{path} .*missing from the image: build"):
        BakedSource(tmp_path).find(SDXL)


def test_folder_that_is_missing_is_missing_from_the_image(tmp_path):
    add_model(tmp_path, "sdxl")
    (tmp_path / "sdxl").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelUnavailable, match="missing from the image"):
        BakedSource(tmp_path).find(SDXL)


@pytest.mark.parametrize("change_bytes", [-1, 1])
def test_listed_file_of_another_size_is_the_hosts_fault(tmp_path, change_bytes):
    entry = add_model(tmp_path, "sdxl")
    path = tmp_path / "sdxl" / "unet" / WEIGHTS_NAME
    os.truncate(path, path.stat().st_size + change_bytes)
    expected = next(f.size_bytes for f in entry.files if f.path == f"unet/{WEIGHTS_NAME}")
    found = expected + change_bytes
    with pytest.raises(WeightsUnreadable, match=f"unet.*expected {expected} bytes, got {found}"):
        BakedSource(tmp_path).find(SDXL)


# --- the platform's cache --------------------------------------------------------------------


def test_pinned_snapshot_is_taken_although_main_is_another(tmp_path):
    pinned = write_flux(tmp_path, main=False)
    write_flux(tmp_path, OTHER_COMMIT)
    weights = cache_source(tmp_path).find(FLUX_DEV)
    assert (weights.folder, weights.revision) == (pinned, FLUX_DEV.revision)
    assert (weights.source, weights.precision) == ("platform_cache", None)


def test_snapshot_that_main_names_is_taken_with_its_own_revision(tmp_path):
    other = write_flux(tmp_path, OTHER_COMMIT)
    weights = cache_source(tmp_path).find(FLUX_DEV)
    assert (weights.folder, weights.revision) == (other, OTHER_COMMIT)


def test_cached_base_of_a_model_with_another_denoiser_is_not_taken_for_it(tmp_path):
    write_flux(tmp_path)
    spec = replace(FLUX_DEV, denoiser_repository="org/other", denoiser_file="other.safetensors")
    assert cache_source(tmp_path).find(spec) is None
    assert "denoiser is in another" in cache_source(tmp_path).why_not(spec)


@pytest.mark.parametrize("main", ["", "../../../etc", "2" * 40, "\u00fc"])
def test_main_that_names_no_snapshot_is_not_followed(tmp_path, main):
    write_flux(tmp_path, OTHER_COMMIT)
    refs = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev" / "refs" / "main"
    refs.write_text(main, encoding="utf-8")
    assert cache_source(tmp_path).find(FLUX_DEV) is None


def test_only_needed_files_of_a_snapshot_are_listed_with_their_digests(tmp_path):
    snapshot = write_flux(tmp_path)
    files = cache_source(tmp_path).find(FLUX_DEV).files
    assert [file.path for file in files] == list(files_of(FLUX_DEV))
    for file in files:
        path = snapshot / file.path
        assert file.size_bytes == path.stat().st_size
        expected = path.resolve().name if file.path.endswith(".safetensors") else ""
        assert file.sha256 == expected


def test_model_without_a_repository_is_not_in_the_cache(tmp_path):
    write_flux(tmp_path)
    assert cache_source(tmp_path).find(FLUX_TINY) is None


def test_error_for_a_second_model_says_that_the_cache_has_one(tmp_path):
    write_flux(tmp_path)
    source = cache_source(tmp_path)
    assert source.fetch(SD15) is None
    assert "black-forest-labs/FLUX.1-dev, and the platform caches one" in source.why_not(SD15)
    assert cache_source(tmp_path / "absent").why_not(SD15).endswith("has no model")


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "transformer/config.json",
        f"transformer/{WEIGHTS_NAME}",
        f"vae/{WEIGHTS_NAME}",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("damage", ["no link", "link to nothing"])
def test_unfinished_snapshot_is_the_hosts_fault(tmp_path, path, damage):
    snapshot = write_flux(tmp_path)
    link = snapshot / path
    if damage == "no link":
        link.unlink()
    else:
        link.resolve().unlink()
    blobs = snapshot.parents[1] / "blobs"
    (blobs / f"{'a' * 64}.incomplete").touch()
    with pytest.raises(WeightsUnreadable, match=r"not whole .*: the platform has not finished"):
        cache_source(tmp_path).find(FLUX_DEV)


def test_cached_repository_in_another_layout_is_the_deployments_fault(tmp_path):
    files = {"flux1-dev.safetensors": b"all in one"}
    write_cached(tmp_path / "hub", pinned(FLUX_DEV)[0], OTHER_COMMIT, files)
    with pytest.raises(ModelUnavailable, match="not in the layout of diffusers"):
        cache_source(tmp_path).find(FLUX_DEV)


def test_vae_of_another_repository_is_taken_from_the_weights_directory(tmp_path):
    write_cached(tmp_path / "hub", *pinned(SDXL), files_of(SDXL))
    without = cache_source(tmp_path).find(SDXL)
    folder = tmp_path / "weights" / "sdxl-vae-fp16-fix"
    write_files(folder, {"config.json": b"{}", WEIGHTS_NAME: b"vae"})
    with_it = cache_source(tmp_path).find(SDXL)
    assert (without.vae, with_it.vae) == (None, folder)
    assert f"vae/{WEIGHTS_NAME}" in [file.path for file in without.files]
    assert f"vae/{WEIGHTS_NAME}" not in [file.path for file in with_it.files]


# --- one after the other ---------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    for name in ("weights", "volume"):
        (tmp_path / name).mkdir()
    return tmp_path


def locator(places):
    return WeightsLocator(
        (
            BakedSource(places / "weights"),
            cache_source(places),
            VolumeSource(places / "volume", places / "local"),
            HubSource(places / "local", None, is_allowed=False),
        )
    )


def test_first_source_that_has_a_model_gives_it(places):
    add_model(places / "volume", "flux-dev")
    assert locator(places).fetch(FLUX_DEV).source == "volume"
    write_flux(places)
    assert locator(places).fetch(FLUX_DEV).source == "platform_cache"
    add_model(places / "weights", "flux-dev")
    assert locator(places).fetch(FLUX_DEV).source == "baked"


def test_broken_model_is_not_replaced_by_one_of_another_source(places):
    add_model(places / "volume", "sdxl")
    add_model(places / "weights", "sdxl")
    (places / "weights" / "sdxl" / "model_index.json").unlink()
    with pytest.raises(ModelUnavailable, match="missing from the image"):
        locator(places).fetch(SDXL)


def test_find_brings_nothing(places):
    add_model(places / "volume", "sdxl")
    assert locator(places).find(SDXL) is None
    fetched = locator(places).fetch(SDXL)
    assert locator(places).find(SDXL) == fetched


def test_error_for_a_model_without_weights_lists_what_each_place_has(places):
    add_model(places / "weights", "sdxl")
    write_flux(places)
    with pytest.raises(ModelUnavailable) as refusal:
        locator(places).fetch(SD15)
    text = str(refusal.value)
    for said in (
        "sd15 has no weights in this deployment: bake it",
        "PIXPOD_MODELS",
        "manifest.toml lists sdxl; ",
        "platform_cache: ",
        "holds black-forest-labs/FLUX.1-dev, ",
        "volume has no manifest.toml; ",
        "hub: downloading is not allowed (PIXPOD_ALLOW_HUB)",
    ):
        assert said in text


def test_names_are_those_of_the_image_else_of_the_volume(places):
    assert locator(places).names == ()
    add_model(places / "volume", "sd15")
    assert locator(places).names == ("sd15",)
    add_model(places / "weights", "sdxl")
    add_model(places / "weights", "flux-dev")
    assert locator(places).names == ("sdxl", "flux-dev")


@pytest.mark.parametrize("is_pinned", [True, False])
def test_weights_that_are_not_of_the_pinned_revision_are_warned_of(places, caplog, is_pinned):
    caplog.set_level(logging.INFO)
    add_model(places / "weights", "sdxl", revision=pinned(SDXL)[1] if is_pinned else "abc")
    locator(places).fetch(SDXL)
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if is_pinned else logging.WARNING)
    assert record.revision == (SDXL.revision if is_pinned else "abc")
