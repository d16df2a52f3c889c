"""Whatever is wrong with a weights directory is named."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixpod.catalog import load_catalog
from pixpod.weights.manifest import CHUNK_BYTES, ManifestEntry
from pixpod_tools.bake.checksums import describe_file, describe_files
from pixpod_tools.bake.verify import verify_directory

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
CATALOG = load_catalog()


def ignore(_size_bytes):
    pass


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "sd15-tiny"
    (folder / "vae").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(bytes(range(256)) * 4)
    return tmp_path


@pytest.fixture
def entry(directory):
    files = describe_files(directory / "sd15-tiny", ["model_index.json", WEIGHTS], ignore)
    return ManifestEntry(name="sd15-tiny", path="sd15-tiny", revision="1", files=files)


def problems(directory, entry):
    return verify_directory(directory, {entry.name: entry}, CATALOG, ignore)


def test_what_was_baked_is_as_baked(directory, entry):
    assert problems(directory, entry) == []


@pytest.mark.parametrize("position", [0, 511, 1023])
def test_flipped_byte_is_named_with_its_place(directory, entry, position):
    path = directory / "sd15-tiny" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert problems(directory, entry) == [
        f"sd15-tiny/{WEIGHTS}: bytes 0 to 1024 are not what was baked"
    ]


def test_flipped_byte_in_a_config_is_named(directory, entry):
    path = directory / "sd15-tiny/model_index.json"
    path.write_text(path.read_text(encoding="utf-8").replace(": ", ":\t"), encoding="utf-8")
    (problem,) = problems(directory, entry)
    assert problem.startswith("sd15-tiny/model_index.json: expected sha256 ")


def test_short_file_is_named_with_both_sizes(directory, entry):
    (directory / "sd15-tiny" / WEIGHTS).write_bytes(bytes(1000))
    assert problems(directory, entry) == [f"sd15-tiny/{WEIGHTS}: expected 1024 bytes, got 1000"]


def test_missing_file_is_named(directory, entry):
    (directory / "sd15-tiny" / WEIGHTS).unlink()
    assert problems(directory, entry) == [f"sd15-tiny/{WEIGHTS}: is missing"]


def test_missing_model_is_named(directory, entry):
    moved = replace(entry, path="elsewhere")
    assert problems(directory, moved)[0] == "elsewhere: is missing"


def test_weights_that_nobody_listed_are_named(directory, entry):
    extra = "vae/diffusion_pytorch_model.fp16.safetensors"
    (directory / "sd15-tiny" / extra).write_bytes(b"")
    assert problems(directory, entry) == [f"sd15-tiny/{extra}: is not listed in the manifest"]


def test_entry_without_files_is_named(directory, entry):
    (problem,) = problems(directory, replace(entry, files=()))
    assert problem.startswith("sd15-tiny: the manifest lists no files")


def test_other_pipeline_than_the_catalogs_is_named(directory, entry):
    (problem,) = problems(directory, replace(entry, name="flux-tiny"))
    assert "expected a FluxPipeline, got a StableDiffusionPipeline" in problem


def test_wrong_sha256_with_right_chunks_is_named(directory, entry):
    index, weights = entry.files
    forged = replace(entry, files=(index, replace(weights, sha256="0" * 64)))
    (problem,) = problems(directory, forged)
    assert problem.startswith(f"sd15-tiny/{WEIGHTS}: expected sha256 ")


def test_all_that_is_wrong_is_named_at_once(directory, entry):
    (directory / "sd15-tiny" / WEIGHTS).write_bytes(bytes(1024))
    (directory / "sd15-tiny/model_index.json").unlink()
    assert len(problems(directory, entry)) >= 2


def test_one_checksum_covers_one_chunk(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(2 * CHUNK_BYTES + 5)
    seen: list[int] = []
    described = describe_file(tmp_path, "a.safetensors", seen.append)
    assert described.chunks[0] == described.chunks[1] != described.chunks[2]
    assert sum(seen) == described.size_bytes == 2 * CHUNK_BYTES + 5


@settings(max_examples=20)
@given(st.binary(max_size=300))
def test_described_file_has_its_size_and_sha256(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("file")
    (folder / "config.json").write_bytes(data)
    described = describe_file(folder, "config.json", ignore)
    assert described.size_bytes == len(data)
    assert described.sha256 == hashlib.sha256(data).hexdigest()
    assert described.chunks == ()
