"""Files are spread over an image's layers evenly, each exactly once."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.errors import InvalidSettings
from pixpod.weights.manifest import MANIFEST, ManifestEntry, render_manifest
from pixpod_tools.bake.layers import split_directory, spread

SIZES = st.dictionaries(
    st.text("abcdef/", min_size=1, max_size=8), st.integers(0, 5_000_000_000), max_size=40
)


@given(SIZES, st.integers(1, 12))
def test_every_file_is_in_one_layer(sizes, count):
    layers = spread(sizes, count)
    assert len(layers) == count
    assert sorted(path for layer in layers for path in layer) == sorted(sizes)


@given(SIZES, st.integers(1, 12))
def test_no_layer_exceeds_the_mean_by_more_than_one_file(sizes, count):
    largest_layer = max(sum(sizes[path] for path in layer) for layer in spread(sizes, count))
    assert largest_layer * count <= sum(sizes.values()) + count * max(sizes.values(), default=0)


def test_same_files_give_the_same_layers():
    """Else a rebuild of an image would push all of its layers again."""
    sizes = {"b": 3, "a": 3, "c": 2, "d": 2}
    assert spread(sizes, 2) == spread(dict(reversed(sizes.items())), 2) == (("a", "c"), ("b", "d"))


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    for path, size_bytes in {"m/a.safetensors": 900, "m/b.safetensors": 800, "m/c.json": 7}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(bytes(size_bytes))
    entry = ManifestEntry(name="m", path="m", revision="1")
    (folder / MANIFEST).write_text(render_manifest({"m": entry}), encoding="utf-8")
    return folder


def test_layers_put_together_are_the_directory(weights, tmp_path):
    to = tmp_path / "layers"
    layers = split_directory(weights, to, 2)
    assert layers["0"] == {"m/a.safetensors": 900}
    assert layers["1"].keys() == {"m/b.safetensors", "m/c.json", MANIFEST}
    merged = {
        path.relative_to(to / number).as_posix(): path.read_bytes()
        for number in layers
        for path in (to / number).rglob("*")
        if path.is_file()
    }
    assert merged == {
        path.relative_to(weights).as_posix(): path.read_bytes()
        for path in weights.rglob("*")
        if path.is_file()
    }


def test_layers_take_no_room_on_the_same_disk(weights, tmp_path):
    split_directory(weights, tmp_path / "layers", 1)
    copy = tmp_path / "layers/0/m/a.safetensors"
    assert copy.stat().st_ino == (weights / "m/a.safetensors").stat().st_ino


def test_folders_that_are_links_are_in_the_layers(weights, tmp_path):
    (weights / "m/vae").symlink_to(weights / "shared")
    (weights / "shared").mkdir()
    (weights / "shared/config.json").write_bytes(b"{}")
    split_directory(weights, tmp_path / "layers", 1)
    assert (tmp_path / "layers/0/m/vae/config.json").read_bytes() == b"{}"
    assert not (tmp_path / "layers/0/m/vae").is_symlink()


def test_leftovers_of_a_broken_bake_are_in_no_layer(weights, tmp_path):
    (weights / "other.part").mkdir()
    (weights / "other.part/a.safetensors").write_bytes(b"half")
    layers = split_directory(weights, tmp_path / "layers", 1)
    assert not any(path.startswith("other") for path in layers["0"])


def test_more_layers_than_files_leave_some_empty(weights, tmp_path):
    layers = split_directory(weights, tmp_path / "layers", 6)
    assert [name for name, files in layers.items() if not files] == ["3", "4"]
    assert (tmp_path / "layers/3").is_dir()
    assert MANIFEST in layers["5"]


def test_layers_of_an_earlier_split_are_not_mixed_in(weights, tmp_path):
    split_directory(weights, tmp_path / "layers", 2)
    with pytest.raises(InvalidSettings, match="is not empty"):
        split_directory(weights, tmp_path / "layers", 3)


def test_directory_that_was_not_baked_is_not_split(tmp_path):
    with pytest.raises(InvalidSettings, match=r"holds no manifest\.toml"):
        split_directory(tmp_path, tmp_path / "layers", 2)


def test_file_that_models_have_in_common_is_in_one_layer(weights, tmp_path):
    other = weights / "n/vae"
    other.mkdir(parents=True)
    (other / "b.safetensors").hardlink_to(weights / "m/b.safetensors")
    entries = {name: ManifestEntry(name=name, path=name, revision="1") for name in ("m", "n")}
    (weights / MANIFEST).write_text(render_manifest(entries), encoding="utf-8")
    layers = split_directory(weights, tmp_path / "layers", 3)
    all_sizes = {path: size for sizes in layers.values() for path, size in sizes.items()}
    assert all_sizes["n/vae/b.safetensors"] == 0
    merged = tmp_path / "image"
    for number in layers:
        shutil.copytree(tmp_path / "layers" / number, merged, symlinks=True, dirs_exist_ok=True)
    link = merged / "n/vae/b.safetensors"
    assert not link.readlink().is_absolute()
    assert link.resolve() == (merged / "m/b.safetensors").resolve()
    assert link.read_bytes() == bytes(800)
