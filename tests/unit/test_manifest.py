"""manifest.toml: what is written is read, and what is wrong with one is said."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weights_directories import add_model

from pixpod.catalog import load_catalog
from pixpod.errors import InvalidSettings
from pixpod.extras import load_extras
from pixpod.families import STORED_PRECISIONS
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.manifest import (
    CHUNK_BYTES,
    ManifestEntry,
    WeightFile,
    names_in,
    read_manifest,
    render_manifest,
)

ENTRY = '[models.sdxl]\npath = "sdxl"\nrevision = "abc"\n'
FILE = '[[models.sdxl.files]]\npath = "a.json"\nsize_bytes = 3\nsha256 = "' + "a" * 64 + '"\n'

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
names = st.text(string.ascii_letters + string.digits + "-_. ", min_size=1)
paths = st.lists(st.sampled_from(["a", "vae", "x.json", "ü b"]), min_size=1).map("/".join)
hex_digits = st.text("0123456789abcdef", min_size=16, max_size=16)


@st.composite
def files(draw):
    size = draw(st.integers(0, 3 * CHUNK_BYTES))
    count = -(-size // CHUNK_BYTES)
    chunks = draw(st.just(()) | st.tuples(*[hex_digits] * count))
    sha256 = draw(hex_digits) * 4
    return WeightFile(path=draw(paths), size_bytes=size, sha256=sha256, chunks=chunks)


@st.composite
def manifests(draw):
    return {
        name: ManifestEntry(
            name=name,
            path=draw(paths),
            revision=draw(texts),
            vae=draw(st.none() | paths),
            repository=draw(st.none() | texts),
            precision=draw(st.none() | st.sampled_from(STORED_PRECISIONS)),
            licence=draw(st.none() | texts),
            recipe=draw(st.none() | texts),
            versions=draw(st.dictionaries(names, texts, max_size=2)) or None,
            files=tuple(draw(st.lists(files(), max_size=2))),
        )
        for name in draw(st.lists(names, unique=True, max_size=3))
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, head="format = 2\n"):
        (tmp_path / "manifest.toml").write_text(head + text, encoding="utf-8")
        return read_manifest(tmp_path)

    return write_and_read


@settings(max_examples=30, deadline=None)
@given(manifest=manifests())
def test_rendered_manifest_reads_as_it_was(tmp_path_factory, manifest):
    directory = tmp_path_factory.getbasetemp()
    (directory / "manifest.toml").write_text(render_manifest(manifest), encoding="utf-8")
    assert read_manifest(directory) == manifest
    assert list(read_manifest(directory)) == list(manifest)


def test_path_and_revision_are_enough(read):
    assert read(ENTRY) == {"sdxl": ManifestEntry(name="sdxl", path="sdxl", revision="abc")}


def test_manifest_may_be_empty(read):
    assert read("") == {}


def test_size_of_a_model_is_that_of_its_files(tmp_path):
    entry = add_model(tmp_path, "sd15")
    on_disk = sum(p.stat().st_size for p in (tmp_path / "sd15").rglob("*") if p.is_file())
    assert read_manifest(tmp_path)["sd15"].size_bytes == entry.size_bytes == on_disk


def test_shipped_manifest_lists_models_of_the_catalog_and_files_that_are_there():
    manifest = read_manifest(SOURCE_WEIGHTS_DIR)
    assert manifest
    assert set(names_in(manifest, extras=False)) <= load_catalog().keys()
    assert set(names_in(manifest, extras=True)) <= load_extras().keys()
    for entry in manifest.values():
        folder = SOURCE_WEIGHTS_DIR / entry.path
        assert entry.files
        assert {file.path: file.size_bytes for file in entry.files} == {
            file.path: (folder / file.path).stat().st_size for file in entry.files
        }


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(InvalidSettings, match=r"absent/manifest\.toml"):
        read_manifest(tmp_path / "absent")


@pytest.mark.parametrize("text", ["[models.sdxl", "models = \xff"])
def test_broken_toml_is_named(read, text):
    with pytest.raises(InvalidSettings, match=r"manifest\.toml"):
        read(text)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "manifest.toml").write_bytes(b"format = 2\n# \xff\xff")
    with pytest.raises(InvalidSettings, match=r"manifest\.toml"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("head", ["", "format = 1\n", 'format = "2"\n'])
def test_other_format_says_which_is_read(read, head):
    with pytest.raises(InvalidSettings, match=r"format .* expected 2; bake again"):
        read(ENTRY, head=head)


WRONG_ENTRIES = {
    "no table": "[models]\nsdxl = 1",
    "a list": "[models]\nsdxl = []",
    "no revision": '[models.sdxl]\npath = "sdxl"',
    "no path": '[models.sdxl]\nrevision = "abc"',
    "number as revision": '[models.sdxl]\npath = "sdxl"\nrevision = 5',
    "empty path": '[models.sdxl]\npath = ""\nrevision = "abc"',
    "switch as vae": ENTRY + "vae = true",
    "unknown field": ENTRY + 'vea = "vae"',
    "unknown precision": ENTRY + 'precision = "int4"',
    "absolute path": '[models.sdxl]\npath = "/sdxl"\nrevision = "abc"',
    "path that leaves": '[models.sdxl]\npath = "a/../../b"\nrevision = "abc"',
    "vae that leaves": ENTRY + 'vae = "../vae"',
    "version that is a number": ENTRY + "versions = { torch = 2 }",
    "files that are no list": ENTRY + "files = 1",
    "file that is no table": ENTRY + "files = [1]",
    "file without path": ENTRY + "files = [{ size_bytes = 1 }]",
}


@pytest.mark.parametrize("wrong", WRONG_ENTRIES)
def test_broken_entry_names_file_and_model(read, wrong):
    with pytest.raises(InvalidSettings, match=r"manifest\.toml: model 'sdxl': .*expected"):
        read(WRONG_ENTRIES[wrong])


WRONG_FILES = {
    "path that leaves": FILE.replace("a.json", "../a.json"),
    "negative size": FILE.replace("= 3", "= -3"),
    "size that is a switch": FILE.replace("= 3", "= true"),
    "no size": FILE.replace("size_bytes = 3\n", ""),
    "short sha256": FILE.replace("a" * 64, "a" * 63),
    "no sha256": FILE.replace("sha256", "sha1"),
    "too many chunks": FILE + 'chunks = ["0123456789abcdef", "0123456789abcdef"]',
    "chunk of another length": FILE + 'chunks = ["0123456789abcde"]',
    "chunk in capitals": FILE + 'chunks = ["0123456789ABCDEF"]',
    "chunks that are a text": FILE + 'chunks = "0"',
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_broken_file_names_file_and_model(read, wrong):
    with pytest.raises(InvalidSettings, match=r"model 'sdxl': file '.*a\.json': .*expected"):
        read(ENTRY + WRONG_FILES[wrong])


def test_unknown_table_beside_the_models_is_refused(read):
    with pytest.raises(InvalidSettings, match=r"expected format, \[models"):
        read('[sdxl]\npath = "sdxl"')


def test_extras_are_listed_beside_the_models(read):
    manifest = read(ENTRY + ENTRY.replace("models.sdxl", "extras.canny"))
    assert names_in(manifest, extras=False) == ("sdxl",)
    assert names_in(manifest, extras=True) == ("canny",)


def test_name_of_a_model_and_an_extra_is_refused(read):
    with pytest.raises(InvalidSettings, match="'sdxl' is a model and an extra"):
        read(ENTRY + ENTRY.replace("models", "extras"))
