"""Files that appear whole; plain base64."""

import asyncio
import base64
import hashlib
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFormat
from pixpod.outputs.storage import DirectoryImageStore, InlineImageStore

IMAGE = EncodedImage(
    index=0,
    seed=1,
    width=8,
    height=8,
    format=ImageFormat.PNG,
    sha256=hashlib.sha256(b"picture").hexdigest(),
    size_bytes=len(b"picture"),
    data=b"picture",
)


def put(store, name, image=IMAGE):
    return asyncio.run(store.put(image, name, within_s=5))


class TestInline:
    def test_data_is_plain_base64(self):
        image = replace(IMAGE, data=bytes(range(256)))
        stored = put(InlineImageStore(), "ignored", image)
        assert base64.b64decode(stored.data, validate=True) == image.data
        assert stored.key is None


class TestDirectory:
    def test_path_is_the_directory_and_the_key(self, tmp_path):
        stored = put(DirectoryImageStore(tmp_path / "new"), "a/b.png")
        assert stored.path == str(tmp_path / "new" / "a" / "b.png")
        assert stored.key == "a/b.png"
        assert Path(stored.path).read_bytes() == b"picture"

    def test_relative_directory_gives_a_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert put(DirectoryImageStore(Path("images")), "b.png").path == "images/b.png"

    def test_nothing_else_is_left_in_the_directory(self, tmp_path):
        put(DirectoryImageStore(tmp_path), "a.png")
        put(DirectoryImageStore(tmp_path), "a.png")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_reader_of_the_old_file_keeps_it_whole(self, tmp_path):
        """A file that is replaced, rather than written over, stays with those who opened it."""
        store = DirectoryImageStore(tmp_path)
        with Path(put(store, "a.png").path).open("rb") as reader:
            put(store, "a.png", replace(IMAGE, data=b"other"))
            assert reader.read() == b"picture"
        assert (tmp_path / "a.png").read_bytes() == b"other"

    @pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/out.png", "link/out.png"])
    def test_key_cannot_leave_the_directory(self, tmp_path, name):
        directory, outside = tmp_path / "images", tmp_path / "outside"
        directory.mkdir()
        outside.mkdir()
        (directory / "link").symlink_to(outside)
        with pytest.raises(StorageDenied, match="out of the output directory"):
            put(DirectoryImageStore(directory), name)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["images", "link", "outside"]

    def test_file_in_place_of_the_directory_is_the_deployments_fault(self, tmp_path):
        (tmp_path / "images").write_text("a file")
        with pytest.raises(StorageDenied, match="PIXPOD_OUTPUT_DIR"):
            put(DirectoryImageStore(tmp_path / "images"), "a.png")

    def test_write_that_breaks_off_leaves_the_old_file(self, tmp_path):
        """As on a full disk: the system stops this process's files at 4 KiB."""
        store = DirectoryImageStore(tmp_path)
        put(store, "a.png")
        limit, ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, ceiling))
        try:
            with pytest.raises(StorageUnavailable, match="File too large"):
                put(store, "a.png", replace(IMAGE, data=bytes(8192)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, ceiling))
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"picture"]

    def test_directory_in_place_of_the_file_is_left_alone(self, tmp_path):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(StorageDenied):
            put(DirectoryImageStore(tmp_path), "a.png")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
