"""Packages on a disk: found by what they were built for, refused in words otherwise."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixpod.engine.compilation.store import (
    INDEX,
    CallForm,
    CompiledStore,
    CompileKey,
    Leaf,
    UnusablePackage,
)

HERE = CompileKey(
    device_name="NVIDIA H100 80GB HBM3",
    capability="9.0",
    versions={"torch": "2.13.0+cu130", "triton": "3.7.1", "torchao": "0.18.0"},
)
KIND = "FluxTransformerBlock-0123456789abcdef"
FORM = CallForm(
    arguments="[1, {}]",
    result="[1, {}]",
    leaves=(
        Leaf(shape=(None, 4096, 3072), dtype="bfloat16", example=(3, 4096, 3072)),
        Leaf(constant=False),
        Leaf(),
    ),
    max_elements=2**31 - 1,
)


@pytest.fixture
def store(tmp_path):
    return CompiledStore(tmp_path / "compiled")


@pytest.fixture
def put(store, tmp_path):
    def put(compile_key=HERE, kind=KIND, content=b"code"):
        built = tmp_path / "built.pt2"
        built.write_bytes(content)
        return store.put(compile_key, kind, FORM, built)

    return put


def with_version(name, version):
    return replace(HERE, versions={**HERE.versions, name: version})


def test_what_was_put_is_found_as_it_was(store, put):
    package = put()
    assert store.find(HERE, KIND) == package
    assert package.form == FORM
    assert package.path.read_bytes() == b"code"


def test_two_kinds_stand_side_by_side(store, put):
    first, second = put(), put(kind="Decoder-0123456789abcdef", content=b"other")
    assert [store.find(HERE, each.kind) for each in (first, second)] == [first, second]


def test_newer_package_takes_the_place_of_the_older(store, put):
    put()
    assert put(content=b"newer") == store.find(HERE, KIND)


def test_kind_that_nobody_built_is_none(store, put):
    assert store.find(HERE, KIND) is None
    put()
    assert store.find(HERE, "Decoder-0123456789abcdef") is None


@pytest.mark.parametrize("name", sorted(HERE.versions))
def test_package_for_another_version_is_refused_by_its_name(store, put, name):
    put(with_version(name, "0.1"))
    with pytest.raises(UnusablePackage, match=f"^{name} 0.1 there, .* here$"):
        store.find(HERE, KIND)


def test_package_for_another_gpu_is_refused_by_its_name(store, put):
    put(replace(HERE, device_name="NVIDIA L40S", capability="8.9"))
    with pytest.raises(UnusablePackage, match=r"capability 8.9 there.*device NVIDIA L40S there"):
        store.find(HERE, KIND)


def test_nearest_of_several_is_named(store, put):
    put(replace(HERE, device_name="NVIDIA L40S", capability="8.9"))
    put(with_version("triton", "3.6.0"))
    with pytest.raises(UnusablePackage, match=r"^triton 3.6.0 there, 3.7.1 here$"):
        store.find(HERE, KIND)


def test_own_package_is_found_beside_foreign_ones(store, put):
    put(with_version("torch", "2.12.0"))
    assert put() == store.find(HERE, KIND)


@pytest.mark.parametrize("content", [b"cod", b"c0de", b""], ids=["short", "changed", "empty"])
def test_damaged_package_is_refused(store, put, content):
    put().path.write_bytes(content)
    with pytest.raises(UnusablePackage, match="checksum"):
        store.find(HERE, KIND)


def test_missing_file_is_refused(store, put):
    put().path.unlink()
    with pytest.raises(UnusablePackage, match="No such file"):
        store.find(HERE, KIND)


def test_folder_under_a_foreign_name_is_refused(store, put):
    foreign = put(with_version("torch", "2.12.0")).path.parent
    foreign.rename(foreign.with_name(HERE.folder))
    with pytest.raises(UnusablePackage, match="renamed"):
        store.find(HERE, KIND)


def test_index_of_another_format_asks_to_build_again(store, put):
    index = put().path.with_name(INDEX)
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 1}))
    with pytest.raises(UnusablePackage, match="build again"):
        store.find(HERE, KIND)


def test_package_cannot_name_a_file_elsewhere(store, put):
    index = put().path.with_name(INDEX)
    index.write_text(index.read_text().replace(KIND, "../../elsewhere"))
    with pytest.raises(UnusablePackage, match="cannot be read"):
        store.find(HERE, KIND)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_index_is_refused_and_never_believed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    built = folder / "built.pt2"
    built.write_bytes(b"code")
    store = CompiledStore(folder)
    index = store.put(HERE, KIND, FORM, built).path.with_name(INDEX)
    text = index.read_text()
    start = data.draw(st.integers(0, len(text) - 1))
    index.write_text(text[:start] + data.draw(st.text(max_size=3)) + text[start + 1 :])
    try:
        found = store.find(HERE, KIND)
    except UnusablePackage:
        return
    assert found is None or found.path.read_bytes() == b"code"


def test_shelves_list_what_can_be_used_and_what_not(store, put):
    put()
    broken = put(with_version("torch", "2.12.0")).path.parent
    (broken / INDEX).write_text("no json")
    indexes = {index.folder.name: index for index in store.indexes()}
    assert indexes[HERE.folder].compile_key == HERE
    assert list(indexes[HERE.folder].packages) == [KIND]
    assert indexes[broken.name].fault == f"{INDEX} cannot be read (JSONDecodeError)"


def test_store_that_is_not_there_holds_nothing(tmp_path):
    store = CompiledStore(tmp_path / "nowhere")
    assert store.find(HERE, KIND) is None
    assert list(store.indexes()) == []


def test_name_of_a_folder_names_the_gpu():
    assert HERE.folder.startswith("nvidia-h100-80gb-hbm3-")
    assert HERE.folder != with_version("torch", "2.14.0").folder


def test_call_grows_with_what_varies_most():
    image = Leaf(shape=(None, 4, None, None), dtype="float16", example=(2, 4, 8, 8))
    text = Leaf(shape=(None, 77, 2048), dtype="float16", example=(2, 77, 2048))
    assert replace(FORM, leaves=(Leaf(constant=False), text, image)).growing == 2
    tokens = Leaf(shape=(None, None, 64), dtype="float16", example=(2, 512, 64))
    words = Leaf(shape=(None, None, 64), dtype="float16", example=(2, 48, 64))
    assert replace(FORM, leaves=(words, tokens)).growing == 1


@pytest.fixture
def volume(tmp_path):
    directory = tmp_path / "volume"
    directory.mkdir()
    return directory


def test_package_on_a_volume_is_not_used_unless_it_is_trusted(store, put, volume, tmp_path):
    put()
    (tmp_path / "compiled").rename(volume / "compiled")
    with pytest.raises(UnusablePackage, match="PIXPOD_TRUST_VOLUME_CODE=true"):
        CompiledStore(volume / "compiled", untrusted=(volume,)).find(HERE, KIND)
    assert CompiledStore(volume / "compiled").find(HERE, KIND)


@pytest.mark.parametrize("linked", [f"{HERE.folder}/{KIND}.pt2", f"{HERE.folder}/{INDEX}", ""])
def test_link_to_a_volume_is_as_untrusted_as_the_volume(put, volume, tmp_path, linked):
    put()
    link = tmp_path / "compiled" / linked
    link.rename(volume / "moved")
    link.symlink_to(volume / "moved")
    assert CompiledStore(tmp_path / "compiled").find(HERE, KIND)
    with pytest.raises(UnusablePackage, match="network volume"):
        CompiledStore(tmp_path / "compiled", untrusted=(volume,)).find(HERE, KIND)


def test_untrusted_directory_may_be_a_link_itself(put, volume, tmp_path):
    put()
    (tmp_path / "compiled").rename(volume / "compiled")
    (tmp_path / "mount").symlink_to(volume)
    with pytest.raises(UnusablePackage, match="network volume"):
        CompiledStore(volume / "compiled", untrusted=(tmp_path / "mount",)).find(HERE, KIND)
