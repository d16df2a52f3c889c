"""Keys that cannot be guessed and never collide; files that appear whole; plain base64."""

import asyncio
import base64
import hashlib
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pixpod.errors import StorageDenied, StorageUnavailable
from pixpod.job import EncodedImage, ImageFormat
from pixpod.outputs.storage import DirectoryImageStore, InlineImageStore, clean_prefix, image_key

IMAGE = EncodedImage(
    index=0,
    seed=1,
    width=8,
    height=8,
    format=ImageFormat.PNG,
    sha256=hashlib.sha256(b"picture").hexdigest(),
    data=b"picture",
)


def key(
    *,
    prefix="",
    key_prefix="",
    job_id="job-1",
    index=0,
    format=ImageFormat.PNG,
    secret="secret",
):
    return image_key(
        prefix=prefix,
        key_prefix=key_prefix,
        job_id=job_id,
        index=index,
        format=format,
        secret=SecretStr(secret),
    )


def put(store, name, image=IMAGE):
    return asyncio.run(store.put(image, name))


class TestKeys:
    def test_key_is_known_for_ever(self):
        """A golden value: a new release must overwrite what the last one wrote."""
        assert key(prefix="live", key_prefix="cats", job_id="1a2b-e1", index=3) == (
            "live/cats/1a2b-e1/3-12da83b606cdfc4f946eb47837155b28.png"
        )

    def test_retried_job_overwrites_its_own_images(self):
        assert key(job_id="a", index=2) == key(job_id="a", index=2)

    def test_token_has_128_bits(self):
        token = Path(key()).stem.partition("-")[2]
        assert len(token) == 32
        assert int(token, 16) > 0

    def test_token_needs_the_secret(self):
        assert key(secret="one") != key(secret="two")

    @given(st.tuples(st.text(), st.integers(0, 99)), st.tuples(st.text(), st.integers(0, 99)))
    def test_two_images_never_share_a_key(self, one, other):
        keys = {key(job_id=job_id, index=index) for job_id, index in (one, other)}
        assert len(keys) == len({one, other})

    @pytest.mark.parametrize(("one", "other"), [("a/b", "a_b"), ("x" * 90, "x" * 91), ("", "_")])
    def test_ids_that_look_alike_have_keys_of_their_own(self, one, other):
        first, second = key(job_id=one), key(job_id=other)
        assert first.split("/")[0] == second.split("/")[0]
        assert first != second

    def test_index_and_id_cannot_be_mixed_up(self):
        first, second = key(job_id="2 x", index=1), key(job_id="x", index=12)
        assert Path(first).stem.split("-")[-1] != Path(second).stem.split("-")[-1]

    @given(st.text())
    def test_any_job_id_makes_a_safe_key(self, job_id):
        parts = key(prefix="live", job_id=job_id).split("/")
        assert len(parts) == 3
        assert clean_prefix("/".join(parts)) == "/".join(parts)
        assert not parts[1].startswith(".")

    @pytest.mark.parametrize("key_prefix", ["cats", "cats/2026-11", "a.b_c/d"])
    def test_callers_prefix_stays_below_the_deployments(self, key_prefix):
        assert key(prefix="live", key_prefix=key_prefix).startswith(f"live/{key_prefix}/job-1/0-")

    @pytest.mark.parametrize("format", ImageFormat)
    def test_key_ends_with_the_format(self, format):
        assert key(format=format).endswith(f".{format}")


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
