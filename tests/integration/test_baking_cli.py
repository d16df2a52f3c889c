"""scripts/bake as its callers see it: status, words, files."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.factories import make_settings

from pixpod.bootstrap import build_worker
from pixpod.weights.manifest import MANIFEST, names_in, read_manifest
from pixpod_tools.bake.cli import main

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "flux-tiny/vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    assert main(["--profile", "tiny", "--to", str(directory)]) == 0
    return directory


@pytest.fixture
def copy_of_tiny(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def test_models_that_ship_are_as_their_manifest_says():
    run = subprocess.run(
        [ROOT / "scripts/bake", "--verify", ROOT / "model_cache"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.startswith("as baked: 5 models, "), run.stderr
    assert run.returncode == 0


def test_tiny_profile_has_flux_in_float8_and_the_others_as_shipped(tiny):
    found = {name: str(entry.precision) for name, entry in read_manifest(tiny).items()}
    assert found.pop("flux-tiny") == "float8_dynamic"
    assert found.pop("swin2sr-x2-tiny") == "float32"
    assert set(found.values()) == {"bfloat16"}
    shipped = read_manifest(ROOT / "model_cache")
    assert found.keys() == shipped.keys() - {"flux-tiny", "swin2sr-x2-tiny"}


def test_worker_offers_the_extras_that_were_baked_with_its_models(tiny):
    def offered(**environ):
        settings = make_settings(PIXPOD_WEIGHTS_DIR=str(tiny), PIXPOD_DEVICE="cpu", **environ)
        return set(build_worker(settings).capabilities.extras)

    assert offered() == set(names_in(read_manifest(tiny), extras=True))
    assert offered(PIXPOD_EXTRAS="sdxl-depth-tiny") == {"sdxl-depth-tiny"}


def test_extras_are_baked_beside_a_model(tmp_path):
    """From their own place: the folder is the model's."""
    source = str(ROOT / "model_cache" / "tiny" / "sd15-tiny")
    arguments = ["--model", "sd15-tiny=float32", "--extra", "sd15-canny-tiny=float16"]
    assert main([*arguments, "--from", source, "--to", str(tmp_path)]) == 0
    found = {name: str(entry.precision) for name, entry in read_manifest(tmp_path).items()}
    assert found == {"sd15-tiny": "float32", "sd15-canny-tiny": "float16"}


def test_verify_names_what_is_wrong_and_fails(copy_of_tiny, capsys):
    data = bytearray((copy_of_tiny / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy_of_tiny / WEIGHTS).write_bytes(data)
    (copy_of_tiny / "sdxl-tiny/unet/config.json").unlink()
    assert main(["--verify", str(copy_of_tiny)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"wrong: {WEIGHTS}: bytes 0 to {len(data)} are not what was baked",
        "wrong: sdxl-tiny/unet/config.json: is missing",
    ]
    assert lines[2].startswith("2 wrong: 5 models, ")


def test_what_is_wrong_is_baked_again(copy_of_tiny, capsys):
    (copy_of_tiny / WEIGHTS).write_bytes(b"")
    assert main(["--model", "flux-tiny=float8_dynamic", "--to", str(copy_of_tiny)]) == 0
    assert main(["--verify", str(copy_of_tiny)]) == 0


def test_layers_are_listed_with_their_bytes(tiny, tmp_path, capsys):
    to = tmp_path / "layers"
    assert main(["--layers", "3", "--from", str(tiny), "--to", str(to)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["layer", "bytes", "files"]
    sizes = [int(row.split()[1].replace(",", "")) for row in rows]
    held = [
        sum(path.stat().st_size for path in (to / str(n)).rglob("*.*") if not path.is_symlink())
        for n in range(3)
    ]
    assert sizes == held
    assert max(sizes) < 1.4 * min(sizes)
    assert (to / "2" / MANIFEST).is_file()


def test_slim_profile_has_no_weights(tmp_path):
    assert main(["--profile", "slim", "--to", str(tmp_path / "slim")]) == 0
    assert read_manifest(tmp_path / "slim") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "invalid_settings: --profile huge: expected tiny, "),
        (["--model", "flux-tiny"], "expected NAME=PRECISION"),
        (["--model", "flux-tiny=int4"], "precision: expected float32, "),
        (["--model", "flux-tiny=float8_dynamic,t5=float32"], "t5=float32: expected t5 and"),
        (["--model", "nobody=bfloat16"], "model nobody: expected flux-dev, "),
        (["--model", "sd15-tiny=float8_dynamic"], "SD 1.5 models have no float8_dynamic form"),
        (["--model", "flux-dev=float8_dynamic"], "licence_not_accepted: flux-dev has the licence"),
        (["--random", "nobody"], "--random nobody: expected flux-dev, "),
        (["--random", "sdxl", "--size-gb", "1"], "--size-gb with sdxl: expected a full-size"),
        (["--verify", "/nowhere"], "invalid_settings: /nowhere/manifest.toml"),
        (["--profile", "tiny", "--extra", "nobody"], "--extra nobody: expected one of "),
        (["--random", "sdxl", "--extra", "sdxl-canny-tiny"], "--profile or --model, not --random"),
        (["--extra", "sdxl-canny-tiny", "--vae", "folder"], "--config and --vae are for models"),
        (["--shard-gb", "1"], "one of --extra, --profile, --model, "),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "error")  # as scripts/_run does
    to = [] if "--verify" in arguments else ["--to", str(tmp_path)]
    assert main([*arguments, *to]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_target_is_an_error(capsys):
    assert main(["--profile", "slim"]) == 1
    assert "--to DIR is needed here" in capsys.readouterr().err
