"""What may be asked for, and the endpoint that follows from it."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from pixpod_tools.deploy.build import build_spec
from pixpod_tools.deploy.configuration import Configuration, parse, read_file
from pixpod_tools.deploy.documents import fields_of
from pixpod_tools.deploy.errors import InvalidConfiguration

BASE = {"name": "pixpod", "image": "example.org/pixpod:1.0", "profile": "flux-schnell+sdxl"}
FLUX_DEV = BASE | {"profile": "flux-dev", "accept_licences": ["flux-1-dev-non-commercial"]}
CACHED = {"name": "x", "image": "x:1", "mode": "cached-model"}
OWN = {"env": {"PIXPOD_CATALOG": "/weights/models.toml"}}
PRESETS = {"env": {"PIXPOD_PRESETS": "/weights/presets.toml"}}
VOLUME = BASE | {"mode": "volume", "network_volume_id": "vol1"}


def wanted(**keys):
    return build_spec(parse(BASE | keys))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": ""}, "name"),
        ({"image": 3}, "image = 3"),
        ({"mode": "bakde"}, "mode = 'bakde'"),
        ({"max_workers": 0}, "max_workers = 0"),
        ({"min_workers": 4}, "min_workers = 4: expected at most max_workers, 3"),
        ({"idle_timeout_s": 3601}, "idle_timeout_s = 3601"),
        ({"scaler_value": 0.4}, "scaler_value = 0.4"),
        ({"scaler": "request_count", "scaler_value": 1.5}, "whole number of requests"),
        ({"scaler": "request_count", "idle_timeout_s": 5}, "the platform refuses it"),
        ({"flashboot": "yes"}, "flashboot = 'yes'"),
        ({"min_cuda": "13"}, "min_cuda = '13'"),
        ({"profile": "flux"}, "profile = 'flux': expected any of tiny, flux-schnell"),
        ({"profile": "slim"}, "one with weights in mode baked"),
        ({"models": ["sd15"]}, "models = 'sd15': expected any of flux-schnell, sdxl"),
        ({"models": []}, "one or more of"),
        ({"precision": {"sd15": "float16"}}, "a model that is served"),
        ({"precision": {"sdxl": "int3"}}, "precision.sdxl"),
        ({"mode": "volume"}, "network_volume_id: expected an id"),
        ({"network_volume_id": "v"}, "none in mode baked"),
        ({"gpu_pools": []}, "gpu_pools = []"),
        ({"cpu": "cpu5c", "gpu_pools": ["ADA_24"]}, "either cpu or gpu_pools"),
        ({"env": {"PIXPOD_MODELS": "sdxl"}}, "env.PIXPOD_MODELS: expected the key models"),
        ({"secrets": {"PIXPOD_MODELS": "sdxl"}}, "env.PIXPOD_MODELS: expected the key models"),
        ({"env": {"PIXPOD_STACKS": "studio"}}, "env.PIXPOD_STACKS: expected the key stacks"),
        ({"stacks": ["sdxl+cany"]}, "PIXPOD_STACKS: sdxl+cany: expected a part"),
        ({"extras": ["cany"]}, "PIXPOD_EXTRAS: extra 'cany' is not in the catalog"),
        ({"extras": []}, "extras = []"),
        ({"catalog": "models.toml"}, "env.PIXPOD_CATALOG: expected the place"),
        (OWN | {"catalog": "/nowhere/models.toml"}, "catalog = '/nowhere/models.toml': expected"),
        ({"presets": "presets.toml"}, "env.PIXPOD_PRESETS: expected the place"),
        (PRESETS | {"presets": "/nowhere.toml"}, "presets = '/nowhere.toml': expected what"),
        ({"env": {"PIXPOD_LOG_LEVEL": "LOUD"}}, "PIXPOD_LOG_LEVEL: expected one of"),
        ({"env": {"PIXPOD_S3_BUCKET": "images"}}, "PIXPOD_KEY_SECRET: expected a random"),
        ({"env": {"A": "b"}, "secrets": {"A": "c"}}, "a variable that [secrets] has not"),
        ({"secrets": {"A": "has space"}}, "secrets.A"),
        ({"env": {"1A": "b"}}, "env.1A"),
        (CACHED | {"models": ["sdxl", "sd15"]}, "the platform caches one"),
        (CACHED | {"models": ["sdxl-lightning"]}, "the denoiser of this one is in another"),
        (CACHED | {"models": ["sdxl-tiny"]}, "this one ships with the source"),
        ({"profile": "flux-dev"}, "'flux-1-dev-non-commercial' for flux-dev: read it"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(keys, words):
    with pytest.raises(InvalidConfiguration) as caught:
        wanted(**keys)
    assert words in str(caught.value)


def test_baked_image_needs_a_profile():
    with pytest.raises(InvalidConfiguration, match="profile: expected any of tiny"):
        build_spec(parse({"name": "x", "image": "x:1"}))


@pytest.mark.parametrize(
    "env",
    [
        {"HF_TOKEN": "hunter2"},
        {"PIXPOD_S3_SECRET_ACCESS_KEY": "hunter2"},
        {"MY_PROXY": "http://user:hunter2@proxy.example"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_secret_in_plain_text_is_refused_unseen(env):
    with pytest.raises(InvalidConfiguration, match="Secrets") as caught:
        parse(BASE | {"env": env})
    assert "hunter2" not in str(caught.value)


def test_value_of_a_variable_is_not_in_a_complaint():
    with pytest.raises(InvalidConfiguration, match=r"env\.A") as caught:
        parse(BASE | {"env": {"A": ["hunter2"]}})
    assert "hunter2" not in str(caught.value)


def test_secrets_go_by_reference():
    env = wanted(
        env={"PIXPOD_S3_BUCKET": "images"},
        secrets={"PIXPOD_S3_ACCESS_KEY_ID": "id", "PIXPOD_S3_SECRET_ACCESS_KEY": "s3-key"},
    ).env
    assert env["PIXPOD_S3_SECRET_ACCESS_KEY"] == "{{ RUNPOD_SECRET_s3-key }}"
    assert env["PIXPOD_S3_BUCKET"] == "images"


def test_models_are_passed_to_the_worker():
    assert wanted().env == {"PIXPOD_MODELS": "flux-schnell,sdxl"}


def test_precision_is_passed_to_the_worker_only_if_requested():
    env = wanted(precision={"sdxl": "bfloat16"}).env
    assert env["PIXPOD_PRECISION"] == "sdxl=bfloat16"


def test_baked_flux_goes_to_the_cheapest_gpus_with_float8():
    spec = build_spec(parse(FLUX_DEV | {"profile": "flux-dev-24gb"}))
    assert spec.pools[0].id == "ADA_24"
    assert fields_of(spec)["gpu.minCudaVersion"] == "13.0"
    assert spec.container_disk_gb == 35
    assert spec.env["PIXPOD_ACCEPT_LICENCES"] == "flux-1-dev-non-commercial"


def test_subset_of_a_profile_needs_less():
    spec = wanted(models=["sdxl"])
    assert spec.env == {"PIXPOD_MODELS": "sdxl"}
    assert spec.pools[0].id == "AMPERE_16"


CATALOG = """
[extras.{name}]
kind = "controlnet"
family = "sdxl"
models = ["sdxl"]
types = ["{type}"]
licence = "terms-1"
licence_must_be_accepted = {must_be_accepted}
gib_16 = 5.0
"""


@pytest.fixture
def with_nets(tmp_path):
    """SDXL with two nets of a catalog of one's own."""
    file = tmp_path / "models.toml"
    entries = (("one", "canny", "false"), ("two", "depth", "true"))
    texts = (
        CATALOG.format(name=name, type=kind, must_be_accepted=must) for name, kind, must in entries
    )
    file.write_text("".join(texts), encoding="utf-8")

    def build(**keys):
        models = {"models": ["sdxl"], "catalog": str(file), "accept_licences": ["terms-1"]}
        return wanted(**{**OWN, **models, **keys})

    return build


def test_pools_have_room_for_stacks(with_nets):
    plain = with_nets(extras=["one", "two"])
    stacked = with_nets(extras=["one", "two"], stacks=["heavy", "sdxl+one"])
    assert (plain.pools[0].id, stacked.pools[0].id) == ("AMPERE_16", "AMPERE_24")
    assert stacked.env["PIXPOD_EXTRAS"] == "one,two"
    assert stacked.env["PIXPOD_STACKS"] == "heavy,sdxl+one"
    assert "PIXPOD_STACKS" not in plain.env
    assert "sdxl+one+two+loras=256 needs 18.3 GiB; sdxl+one needs 11.8 GiB" in stacked.remarks[0]
    assert stacked.container_disk_gb > with_nets(extras=["one"]).container_disk_gb


def test_pool_without_room_for_a_stack_is_refused_with_the_numbers(with_nets):
    with pytest.raises(InvalidConfiguration) as caught:
        with_nets(extras=["one", "two"], stacks=["sdxl+one+two"], gpu_pools=["AMPERE_16"])
    text = str(caught.value)
    assert "sdxl+one+two in float16 needs 16.78 GiB of the GPU for its stage denoise" in text
    assert "leave one out of it, which takes 11.78 GiB" in text


def test_pools_have_room_for_stacks_of_own_presets(with_nets, tmp_path):
    file = tmp_path / "presets.toml"
    night = """
[night]
controlnets = [
    { type = "canny", image = "https://app.example/1.png" },
    { type = "depth", image = "https://app.example/2.png" },
]
loras = [{ source = "house-style" }]
"""
    file.write_text(night, encoding="utf-8")
    env = {"env": OWN["env"] | PRESETS["env"]}
    plain = with_nets(extras=["one", "two"], presets=str(file), **env)
    stacked = with_nets(extras=["one", "two"], presets=str(file), stacks=["night"], **env)
    assert (plain.pools[0].id, stacked.pools[0].id) == ("AMPERE_16", "AMPERE_24")
    assert stacked.env["PIXPOD_STACKS"] == "night"
    assert stacked.env["PIXPOD_PRESETS"] == "/weights/presets.toml"
    assert "sdxl+one+two+loras needs" in stacked.remarks[0]


def test_own_preset_that_a_worker_refuses_is_refused(tmp_path):
    file = tmp_path / "presets.toml"
    file.write_text("[night]\nwidht = 64", encoding="utf-8")
    with pytest.raises(InvalidConfiguration) as caught:
        wanted(presets=str(file), **PRESETS)
    assert caught.value.field == "presets"
    assert "PIXPOD_PRESETS: night: widht: expected a field of the contract" in str(caught.value)


def test_licence_of_an_extra_must_be_accepted(with_nets):
    assert with_nets(extras=["one"], accept_licences=[])
    with pytest.raises(InvalidConfiguration, match="'terms-1' for two: read it"):
        with_nets(extras=["two"], accept_licences=[])


def test_tiny_profile_runs_on_a_cpu():
    spec = wanted(profile="tiny")
    assert fields_of(spec)["cpu"] == [{"id": "cpu5c", "vcpuCount": 4}]


def test_tiny_profile_runs_on_a_gpu_if_requested():
    spec = wanted(profile="tiny", gpu_pools=["ADA_24"])
    assert fields_of(spec)["gpu.pools"] == ["ADA_24"]
    assert "cpu" not in fields_of(spec)


def test_cached_model_is_a_thing_of_the_console():
    built = build_spec(parse(CACHED | {"models": ["sdxl"]}))
    assert any("stabilityai/stable-diffusion-xl-base-1.0" in remark for remark in built.remarks)
    assert fields_of(built)["networkVolumes"] == []
    assert built.container_disk_gb == 20


def test_cost_of_quantizing_at_boot_is_a_remark():
    keys = CACHED | {"models": ["flux-schnell"], "precision": {"flux-schnell": "float8_dynamic"}}
    assert any("quantizes" in remark for remark in build_spec(parse(keys)).remarks)


def test_volume_is_attached_and_its_copy_fits_on_the_disk():
    spec = build_spec(parse(VOLUME))
    assert fields_of(spec)["networkVolumes"] == ["vol1"]
    assert spec.container_disk_gb == 50


def test_precision_that_no_worker_takes_is_refused_even_for_named_pools():
    keys = {"models": ["sdxl"], "precision": {"sdxl": "int8_dynamic"}}
    for pools in ({}, {"gpu_pools": ["ADA_24"]}):
        with pytest.raises(InvalidConfiguration, match="sdxl cannot run in int8_dynamic"):
            wanted(**keys, **pools)


def test_idle_timeout_is_the_platforms_business_with_request_count():
    assert fields_of(wanted())["workers.idleTimeout"] == 5
    assert "workers.idleTimeout" not in fields_of(wanted(scaler="request_count"))


@pytest.mark.parametrize(
    ("image", "is_moved"),
    [
        ("example.org:5000/pixpod", True),
        ("pixpod:latest", True),
        ("example.org:5000/pixpod:1.0", False),
        ("pixpod@sha256:0123", False),
    ],
)
def test_tag_that_moves_is_remarked(image, is_moved):
    remarks = wanted(image=image).remarks
    assert any("tag is moved" in remark for remark in remarks) is is_moved


def test_keys_are_read_from_a_file(tmp_path):
    file = tmp_path / "deploy.toml"
    file.write_text('name = "x"\nimage = "y:1"\n[env]\nA = "b"\n', encoding="utf-8")
    assert parse(read_file(file)) == Configuration(name="x", image="y:1", env={"A": "b"})


@pytest.mark.parametrize("content", [None, "name = ", b"\xff"], ids=["absent", "no TOML", "binary"])
def test_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "deploy.toml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidConfiguration, match=r"--config = .*deploy\.toml"):
        read_file(file)


def test_documented_file_works_and_names_every_key():
    text = (Path(__file__).resolve().parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    example = text[text.index("```toml") + 7 :].partition("```")[0]
    assert build_spec(parse(tomllib.loads(example)))
    assert [field.name for field in fields(Configuration) if field.name not in example] == []
