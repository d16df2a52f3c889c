"""Models of one's own: from a folder or a file by a catalog, and with LoRAs in their weights."""

import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from support.factories import OFFER, make_settings
from support.ldm_layout import single_file_of

from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.contract.payload import parse_job
from pixpod.errors import InvalidSettings
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.cli import main
from pixpod_tools.bake.recipes import parse_lora

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "model_cache/tiny"
LORAS = TINY / "loras"
ENTRY = """
[mine]
family = "{family}"
licence = "MIT"
precision = {{ cpu = "float32" }}
{more}

[mine.defaults]
width = 64
height = 64
num_inference_steps = 12
guidance_scale = 3.0
scheduler = "DPM++ 2M"

[mine.limits]
min_side_px = 32
max_side_px = 256
max_pixels = 16_384
max_steps = 50
max_guidance = 10.0
max_images = 8
"""


@pytest.fixture
def bake(tmp_path, capsys):
    def run(*arguments, family="sd15", more=""):
        catalog = tmp_path / "models.toml"
        catalog.write_text(ENTRY.format(family=family, more=more), encoding="utf-8")
        weights = tmp_path / "weights"
        model = ("--catalog", str(catalog), "--model", "mine=float32", "--to", str(weights))
        status = main([*model, *arguments])
        return status, weights, capsys.readouterr().err

    return run


@pytest.fixture
def file(tmp_path):
    tensors = {name: each.contiguous() for name, each in single_file_of(TINY / "sd15-tiny").items()}
    save_file(tensors, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def unet_of(weights):
    return load_file(weights / "mine/unet/diffusion_pytorch_model.safetensors")


def test_file_of_a_catalog_is_baked_and_served(bake, file, tmp_path):
    more = f'source = "mine.safetensors"\nconfig = "{TINY / "sd15-tiny"}"'
    status, weights, _ = bake(more=more)
    assert status == 0
    assert read_manifest(weights)["mine"].revision.startswith("mine.safetensors-")
    theirs = load_file(TINY / "sd15-tiny/unet/diffusion_pytorch_model.safetensors")
    ours = unet_of(weights)
    assert all(torch.equal(ours[name], theirs[name].float()) for name in ours)
    environ = {
        "PIXPOD_CATALOG": str(tmp_path / "models.toml"),
        "PIXPOD_WEIGHTS_DIR": str(weights),
        "PIXPOD_DEVICE": "cpu",
    }
    assert "mine" in build_worker(make_settings(**environ)).capabilities.models


def test_folder_of_a_catalog_is_baked(bake):
    status, weights, _ = bake(more=f'source = "{TINY / "sd15-tiny"}"')
    assert status == 0
    assert read_manifest(weights)["mine"].precision == "float32"


@pytest.mark.parametrize(("family", "title"), [("sdxl", "SDXL")])
def test_file_of_another_family_is_refused(bake, file, family, title):
    more = f'source = "mine.safetensors"\nconfig = "{TINY / "sdxl-tiny"}"'
    status, weights, text = bake(family=family, more=more)
    assert status == 1
    assert "model_unavailable: mine: " in text
    assert f"expected weights of the family {title}, got SD 1.5" in text
    assert not (weights / "mine").exists()


def test_folder_of_another_family_is_refused(bake):
    status, _, text = bake(family="sdxl", more=f'source = "{TINY / "sd15-tiny"}"')
    assert status == 1
    assert "model_unavailable: " in text


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ('source = "a"\nrepository = "org/a"', "source"),
        ('config = "a"', "config"),
    ],
)
def test_entry_that_contradicts_itself_is_refused(tmp_path, more, field):
    path = tmp_path / "models.toml"
    path.write_text(ENTRY.format(family="sd15", more=more), encoding="utf-8")
    with pytest.raises(InvalidSettings, match=f"mine.*: {field} does not fit"):
        load_catalog(path)


# --- LoRAs in the weights ------------------------------------------------------------------------


def test_baked_loras_are_those_that_diffusers_fuses(bake):
    """In all components, against diffusers' own `fuse_lora` by PEFT."""
    bar, frame = LORAS / "sdxl-bar.safetensors", LORAS / "sdxl-frame.safetensors"
    given = ("--from", str(TINY / "sdxl-tiny"), "--lora", f"{bar}=0.8", "--lora", str(frame))
    status, weights, _ = bake(*given, family="sdxl")
    assert status == 0
    recipe = str(read_manifest(weights)["mine"].recipe)
    assert re.search(
        r"LoRA sdxl-bar\.safetensors \([0-9a-f]{12}\) at 0\.8; LoRA sdxl-fr.* at 1$", recipe
    )
    pipe = StableDiffusionXLPipeline.from_pretrained(TINY / "sdxl-tiny", dtype=torch.float32)
    for path, scale in ((bar, 0.8), (frame, 1.0)):
        pipe.load_lora_weights(str(path))
        pipe.fuse_lora(lora_scale=scale)
        pipe.unload_lora_weights()
    fused, plain = (
        pipe.unet.state_dict(),
        load_file(TINY / "sdxl-tiny/unet/diffusion_pytorch_model.safetensors"),
    )
    ours = unet_of(weights)
    assert all(torch.allclose(ours[name], fused[name], atol=1e-6) for name in ours)
    changed = [name for name in ours if not torch.equal(ours[name], plain[name].float())]
    assert len(changed) > 10


def test_lora_goes_into_the_weights_before_they_are_in_eight_bits(tmp_path):
    path = LORAS / "flux-bar.safetensors"
    arguments = ["--model", "flux-tiny=float8_dynamic", "--to", str(tmp_path / "a")]
    assert main(arguments) == 0
    assert main([*arguments[:3], str(tmp_path / "b"), "--lora", f"{path}=2"]) == 0
    before, after = (
        load_file(tmp_path / name / "flux-tiny/transformer/diffusion_pytorch_model.safetensors")
        for name in "ab"
    )
    layers = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(before[name].dtype is torch.float8_e4m3fn for name in layers)


def test_lora_of_another_model_is_refused(bake):
    lora = LORAS / "flux-bar.safetensors"
    status, _, text = bake("--from", str(TINY / "sd15-tiny"), "--lora", str(lora))
    assert status == 1
    assert (
        "adapter_unusable: LoRA flux-bar.safetensors: expected a LoRA of layers that SD 1.5" in text
    )


@pytest.mark.parametrize("text", ["missing.safetensors", "{}=loud", "{}=9", "{}=nan"])
def test_lora_that_cannot_be_used_is_refused(text):
    with pytest.raises(InvalidSettings, match="--lora "):
        parse_lora(text.format(LORAS / "sdxl-bar.safetensors"))


def test_lora_needs_one_model(capsys):
    assert main(["--profile", "tiny", "--to", "x", "--lora", "a.safetensors"]) == 1
    assert "--lora: expected one --model beside it" in capsys.readouterr().err


# --- LoRAs for few steps -------------------------------------------------------------------------

PAGE = (ROOT / "docs/loras.md").read_text(encoding="utf-8")
PAYLOADS = [
    json.loads(block)
    for block in re.findall(
        r"```json\n(.+?)```", PAGE.partition("## Few steps by a LoRA")[2], re.DOTALL
    )
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload["input"]["model"])
def test_documented_payload_is_accepted_and_its_scheduler_is_there(payload):
    job = parse_job({"id": "job-1", **payload}, OFFER)
    given = payload["input"]
    sampling = job.request.sampling
    assert sampling.num_inference_steps == given["num_inference_steps"]
    assert [each.path for each in job.loras] == ["loras[0]"]
    spec = load_catalog()[given["model"]].scheduler_specs[sampling.scheduler]
    scheduler = getattr(diffusers, spec.class_name)(**spec.options)
    scheduler.set_timesteps(
        given["num_inference_steps"], **({"mu": 1.0} if "flux" in given["model"] else {})
    )
    assert len(scheduler.timesteps) == given["num_inference_steps"]


def test_lcm_and_hyper_sd_are_documented():
    named = {payload["input"].get("scheduler") for payload in PAYLOADS}
    assert named == {"LCM", "DDIM trailing", None}
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999, "Hyper-SD begins at the noisiest step"
