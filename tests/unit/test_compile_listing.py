"""What `scripts/compile --list` says of a directory."""

from dataclasses import replace

import pytest

from pixpod.engine.compilation.store import CallForm, CompiledStore, CompileKey
from pixpod_tools.compile.listing import list_store

HERE = CompileKey(device_name="NVIDIA L40S", capability="8.9", versions={"torch": "2.13.0"})
KIND = "Decoder-0123456789abcdef"


@pytest.fixture
def put(tmp_path):
    def put(compile_key):
        built = tmp_path / "built.pt2"
        built.write_bytes(b"code" * 500_000)
        form = CallForm(arguments="", result="", leaves=(), max_elements=1)
        return CompiledStore(tmp_path / "compiled").put(compile_key, KIND, form, built)

    return put


def listed(tmp_path):
    return list(list_store(tmp_path / "compiled", HERE))


def test_empty_directory_says_so(tmp_path):
    assert listed(tmp_path)[1].endswith("holds no packages")


def test_package_that_would_be_used_is_listed_with_its_size(tmp_path, put):
    put(HERE)
    assert listed(tmp_path) == [
        f"here: {HERE.folder}",
        f"{HERE.folder}: used here",
        f"       2.0 MB  {KIND}  whole",
    ]


def test_package_that_would_not_be_used_is_listed_with_its_reason(tmp_path, put):
    put(replace(HERE, versions={"torch": "2.12.0"}))
    assert listed(tmp_path)[1].endswith(": not used here: torch 2.12.0 there, 2.13.0 here")


def test_damage_is_reported(tmp_path, put):
    put(HERE).path.write_bytes(b"code")
    assert listed(tmp_path)[2].endswith(f"{KIND}  damaged: {KIND}.pt2: its checksum is wrong")
