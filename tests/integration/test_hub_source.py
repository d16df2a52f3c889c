"""Downloads with huggingface_hub from a hub on this machine."""

import logging
import shutil
import time
from dataclasses import replace
from typing import Any

import huggingface_hub
import pytest
from pydantic import SecretStr
from support.hub_server import SIGNATURE, TOKEN, Repository, running_hub
from support.weights_directories import CATALOG, WEIGHTS_NAME, files_of, pinned

from pixpod.errors import DiskFull, HubUnavailable, ModelUnavailable
from pixpod.extras import load_extras
from pixpod.weights.hub_repository import fetch_repository, needed_files
from pixpod.weights.sources import HubSource

FLUX, FLUX_DEV, SDXL = (CATALOG[name] for name in ("flux-schnell", "flux-dev", "sdxl"))
TRANSFORMER = f"transformer/{WEIGHTS_NAME}"
OTHER_TOKEN = "hf_of_another_account"


@pytest.fixture
def hub():
    junk = {"flux1.safetensors": b"all in one", "grid.jpg": b"jpg", "unet/model.onnx": b"onnx"}
    halved = {
        path.replace(".safetensors", ".fp16.safetensors"): b"16 bits of " + path.encode()
        for path in files_of(SDXL)
        if path.endswith(".safetensors")
    }
    vae = {"config.json": b'{"of": "vae"}', WEIGHTS_NAME: b"fp16-safe", "vae.safetensors": b"x"}
    repositories = {
        pinned(FLUX): (files_of(FLUX) | junk, False),
        pinned(FLUX_DEV): (files_of(FLUX_DEV), True),
        pinned(SDXL): (files_of(SDXL) | halved, False),
        (str(SDXL.vae_repository), str(SDXL.vae_revision)): (vae, False),
    }
    with running_hub(
        {
            name: Repository(revision=revision, files=files, is_gated=is_gated)
            for (name, revision), (files, is_gated) in repositories.items()
        }
    ) as server:
        yield server


@pytest.fixture
def small_blocks(monkeypatch):
    """The library writes what it gets in blocks of 10 MB, and goes on behind the last one."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50)


@pytest.fixture
def source(hub, tmp_path):
    def make(token=None, **options):
        secret = SecretStr(token) if token else None
        options = {"is_allowed": True, "endpoint": hub.url} | options
        return HubSource(tmp_path / "local", secret, **options)

    return make


def bytes_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }


def test_needed_files_of_the_pinned_revision_are_brought_and_listed(source):
    weights = source().fetch(FLUX)
    assert bytes_below(weights.folder) == files_of(FLUX)
    assert [file.path for file in weights.files] == list(files_of(FLUX))
    assert (weights.source, weights.revision) == ("hub", FLUX.revision)


@pytest.mark.parametrize("folder", ["", "canny"])
def test_extra_is_fetched_from_its_folder_of_a_repository(source, hub, folder):
    inside = f"{folder}/" if folder else ""
    files = {f"{inside}config.json": b"{}", f"{inside}{WEIGHTS_NAME}": b"a net"}
    others = {"grid.jpg": b"jpg", f"other/{WEIGHTS_NAME}": b"another net"}
    revision = "5" * 40
    hub.repositories["org/nets"] = Repository(revision=revision, files=files | others)
    net = replace(
        load_extras()["sdxl-canny-tiny"],
        repository="org/nets",
        revision=revision,
        folder=folder,
    )
    weights = source().fetch(net)
    assert bytes_below(weights.folder) == {"config.json": b"{}", WEIGHTS_NAME: b"a net"}
    assert [file.path for file in weights.files] == ["config.json", WEIGHTS_NAME]
    assert source().find(net) == weights


def test_second_boot_asks_nothing_of_the_hub(source, hub):
    first = source().fetch(FLUX)
    hub.status = 501
    assert source().find(FLUX) == first
    assert source().fetch(FLUX) == first


def test_vae_of_another_repository_takes_the_place_of_the_models_own(source):
    weights = source().fetch(SDXL)
    found = bytes_below(weights.folder)
    assert found["vae/config.json"] == b'{"of": "vae"}'
    assert found[f"vae/{WEIGHTS_NAME}"] == b"fp16-safe"
    assert [path for path in found if path.endswith(".safetensors")] == [
        "text_encoder/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder_2/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        f"vae/{WEIGHTS_NAME}",
    ]
    assert {file.path for file in weights.files} == found.keys()


def test_denoiser_of_another_repository_takes_the_place_of_the_models_own(source, hub):
    files = {"4step.safetensors": b"4 steps", "8step.safetensors": b"8 steps"}
    hub.repositories["org/unets"] = Repository(revision="4" * 40, files=files)
    spec = replace(
        SDXL,
        denoiser_repository="org/unets",
        denoiser_revision="4" * 40,
        denoiser_file="4step.safetensors",
    )
    weights = source().fetch(spec)
    unet = {path for path in bytes_below(weights.folder) if path.startswith("unet/")}
    assert unet == {"unet/config.json", "unet/4step.safetensors"}
    assert {file.path for file in weights.files} == bytes_below(weights.folder).keys()
    assert source().find(replace(spec, denoiser_revision="5" * 40)) is None
    with pytest.raises(ModelUnavailable, match="denoiser_revision is missing in the catalog"):
        source().fetch(replace(spec, denoiser_revision=None))


def test_download_that_breaks_off_goes_on_where_it_was(source, hub, small_blocks):
    size = len(files_of(FLUX)[TRANSFORMER])
    hub.breaks = {TRANSFORMER: [300]}
    weights = source().fetch(FLUX)
    assert bytes_below(weights.folder) == files_of(FLUX)
    assert [first for path, first in hub.downloads if path == TRANSFORMER] == [0, 300]
    assert hub.bytes_sent[TRANSFORMER] == size


@pytest.mark.parametrize("path", [TRANSFORMER, "transformer/config.json"])
def test_damaged_download_is_refused_and_only_that_file_is_repeated(source, hub, path):
    hub.damaged = {path}
    with pytest.raises(HubUnavailable, match=f"{path} arrived damaged: try again"):
        source().fetch(FLUX)
    assert source().find(FLUX) is None
    hub.damaged.clear()
    hub.downloads.clear()
    assert bytes_below(source().fetch(FLUX).folder) == files_of(FLUX)
    assert path in [downloaded for downloaded, _ in hub.downloads]
    assert len(hub.downloads) < len(files_of(FLUX))


def test_gated_model_is_brought_with_the_token_of_who_has_accepted(source):
    assert bytes_below(source(TOKEN).fetch(FLUX_DEV).folder) == files_of(FLUX_DEV)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "it is gated, and no token was given: accept its conditions at https://"),
        (OTHER_TOKEN, "it is gated, and the token has no access: accept its conditions"),
        ("hf_misspelt", "the hub refuses, the token has no access: .*HF_TOKEN"),
    ],
)
def test_gated_model_without_access_says_what_to_do(source, token, said):
    with pytest.raises(ModelUnavailable, match=said) as refusal:
        source(token).fetch(FLUX_DEV)
    assert str(token) not in str(refusal.value)


def test_token_of_the_machine_is_not_used(source, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the library would find it
    with pytest.raises(ModelUnavailable, match="no token was given"):
        source().fetch(FLUX_DEV)


def test_missing_revision_is_the_catalogs_fault(source, hub):
    hub.repositories[FLUX.repository].revision = "0" * 40
    with pytest.raises(ModelUnavailable, match=f"{FLUX.revision}: no such revision: correct"):
        source().fetch(FLUX)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_missing_repository_is_the_catalogs_fault(source, hub, token):
    del hub.repositories[FLUX.repository]
    with pytest.raises(ModelUnavailable, match=r"no such repository, .*correct `repository`"):
        source(token).fetch(FLUX)


def test_repository_in_another_layout_is_the_catalogs_fault(source, hub):
    hub.repositories[FLUX.repository].files = {"flux.safetensors": b"all in one"}
    with pytest.raises(ModelUnavailable, match="must be in the layout of diffusers"):
        source().fetch(FLUX)


def test_hub_that_does_not_work_is_a_fault_of_the_host(source, hub):
    hub.status = 501
    with pytest.raises(HubUnavailable, match="status 501"):
        source().fetch(FLUX)


def test_hub_that_nobody_reaches_is_a_fault_of_the_host(source, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's own retries
    with pytest.raises(HubUnavailable, match="ConnectError"):
        source(endpoint="http://127.0.0.1:9").fetch(FLUX)


def test_disk_without_room_is_full_before_anything_is_downloaded(source, hub, monkeypatch):
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = sum(map(len, files_of(FLUX).values()))
    with pytest.raises(DiskFull, match=rf"needs {needed} bytes in .* 1000 free"):
        source().fetch(FLUX)
    assert not hub.downloads


def test_network_is_not_used_unless_allowed(source, hub, tmp_path):
    hub.status = 501  # any question would raise
    forbidden = source(is_allowed=False)
    assert forbidden.find(FLUX) is None
    assert forbidden.fetch(FLUX) is None
    assert "PIXPOD_ALLOW_HUB" in forbidden.why_not(FLUX)
    assert not (tmp_path / "local").exists()


def test_model_without_a_repository_is_not_on_the_hub(source):
    assert source().fetch(CATALOG["flux-tiny"]) is None
    assert source().why_not(CATALOG["flux-tiny"]) == "the catalog names no repository"


@pytest.mark.parametrize("field", ["revision", "vae_revision"])
def test_model_that_is_not_pinned_is_refused(source, field):
    change: Any = {field: None}
    with pytest.raises(ModelUnavailable, match=f"{field} is missing in the catalog"):
        source().fetch(replace(SDXL, **change))


def test_library_that_is_kept_offline_is_so_again_after_the_download(source, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert source().fetch(FLUX)
    assert constants.HF_HUB_OFFLINE is True


def test_fetch_in_an_offline_process_says_how_to_allow_it(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE forbids"):
        fetch_repository(*pinned(FLUX), needed_files(FLUX), tmp_path, endpoint=hub.url)


def test_no_token_and_no_signed_link_gets_into_logs_or_errors(
    source, hub, small_blocks, caplog, capfd
):
    """Each line that the libraries write at INFO, also to standard error by themselves."""
    caplog.set_level(logging.INFO)
    hub.breaks = {TRANSFORMER: [100]}
    hub.damaged = {f"vae/{WEIGHTS_NAME}"}
    with pytest.raises(HubUnavailable) as error:
        source(TOKEN).fetch(FLUX_DEV)
    assert TRANSFORMER in [path for path, first in hub.downloads if first]
    printed = capfd.readouterr()
    seen = caplog.text + printed.out + printed.err + repr(error.getrepr(chain=True))
    assert "downloading" in caplog.text
    assert SIGNATURE not in seen
    assert TOKEN not in caplog.text + printed.out + printed.err + str(error.value)


def test_error_about_a_signed_link_does_not_quote_it(source, hub):
    """The library's own text has the whole of a link that the CDN refuses."""
    hub.are_links_expired = True
    with pytest.raises(ModelUnavailable) as error:
        source().fetch(FLUX)
    assert SIGNATURE not in str(error.getrepr(chain=True))


def test_progress_is_logged_in_tenths_up_to_the_whole(source, caplog):
    caplog.set_level(logging.INFO)
    source().fetch(FLUX)
    percents = [each.percent for each in caplog.records if each.message.startswith("downloading")]
    assert percents[-1] == 100
    assert percents == sorted(set(percents))
