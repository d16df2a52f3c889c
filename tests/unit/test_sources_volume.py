"""Copies from a volume: once, checked, continued after any interruption, and never half."""

import errno
import fcntl
import io
import logging
import multiprocessing
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weights_directories import CATALOG, WEIGHTS_NAME, add_model, describe, write_files

from pixpod.errors import DiskFull, InvalidSettings, ModelUnavailable, WeightsUnreadable
from pixpod.weights.manifest import read_manifest, render_manifest
from pixpod.weights.sources import VolumeSource, copying
from pixpod.weights.sources.copying import copy_files

SDXL = CATALOG["sdxl"]
UNET = f"unet/{WEIGHTS_NAME}"


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    add_model(tmp_path / "volume", "sdxl")
    return tmp_path / "volume"


@pytest.fixture
def source(volume, tmp_path):
    return VolumeSource(volume, tmp_path / "local")


def bytes_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def no_progress(done_bytes, total_bytes):
    pass


def test_copy_is_the_model_of_the_volume(source, volume):
    assert source.find(SDXL) is None
    weights = source.fetch(SDXL)
    assert bytes_below(weights.folder) == bytes_below(volume / "sdxl")
    assert weights.files == read_manifest(volume)["sdxl"].files
    assert (weights.source, weights.revision) == ("volume", "1")
    assert source.find(SDXL) == weights


def test_model_that_the_volume_does_not_have_is_not_brought(source):
    assert source.fetch(CATALOG["sd15"]) is None
    assert source.why_not(CATALOG["sd15"]).endswith("volume/manifest.toml lists sdxl")


def test_volume_that_is_not_mounted_has_nothing(tmp_path):
    source = VolumeSource(tmp_path / "absent", tmp_path / "local")
    assert source.names == ()
    assert source.fetch(SDXL) is None
    assert source.why_not(SDXL).endswith("absent has no manifest.toml")


def test_copy_is_made_once(source, volume):
    source.fetch(SDXL)
    for path in (volume / "sdxl").rglob("*.safetensors"):
        path.unlink()
    assert source.fetch(SDXL) == source.find(SDXL)


def test_file_that_went_missing_from_the_copy_is_brought_again(source, volume):
    weights = source.fetch(SDXL)
    (weights.folder / UNET).unlink()
    os.truncate(weights.folder / "vae" / WEIGHTS_NAME, 5)
    assert source.find(SDXL) is None
    assert bytes_below(source.fetch(SDXL).folder) == bytes_below(volume / "sdxl")


def test_new_revision_takes_the_place_of_the_old(source, volume):
    old = source.fetch(SDXL)
    add_model(volume, "sdxl", salt="better", revision="2")
    assert source.find(SDXL) is None
    new = source.fetch(SDXL)
    assert new.revision == "2"
    assert bytes_below(new.folder) == bytes_below(volume / "sdxl")
    assert not old.folder.exists()


def test_other_models_stay(source, volume):
    add_model(volume, "sd15")
    first = source.fetch(SDXL)
    second = source.fetch(CATALOG["sd15"])
    assert source.find(SDXL) == first
    assert source.find(CATALOG["sd15"]) == second


# --- interrupted -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(min_size=0, max_size=300),
    cut=st.integers(0, 300),
    block_bytes=st.sampled_from([1, 7, 64, 1000]),
    garbage=st.binary(max_size=3),
)
def test_copy_that_was_cut_at_any_byte_ends_with_the_same_bytes(
    tmp_path_factory, data, cut, block_bytes, garbage
):
    """`garbage` is what a crash of the host may leave behind the last good byte."""
    folder = tmp_path_factory.mktemp("cut")
    write_files(folder / "from", {"a/b.safetensors": data})
    write_files(folder / "to", {"a/b.safetensors.part": data[:cut] + garbage})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{copying.__name__}.BLOCK_BYTES", block_bytes)
        file = describe("a/b.safetensors", data)
        copy_files(folder / "from", folder / "to", [file], no_progress)
    assert bytes_below(folder / "to") == {"a/b.safetensors": data}
    shutil.rmtree(folder)


def test_resumed_copy_reads_only_what_is_missing(volume, tmp_path, monkeypatch):
    entry = read_manifest(volume)["sdxl"]
    (file,) = (file for file in entry.files if file.path == UNET)
    data = (volume / "sdxl" / UNET).read_bytes()
    write_files(tmp_path / "to", {f"{UNET}.part": data[:300]})
    read_bytes = 0
    read = copying._read

    def count(source, path):
        nonlocal read_bytes
        block = read(source, path)
        read_bytes += len(block)
        return block

    monkeypatch.setattr(copying, "_read", count)
    copy_files(volume / "sdxl", tmp_path / "to", [file], no_progress)
    assert read_bytes == len(data) - 300


def kill_at(done_limit_bytes, volume, local):
    """Runs in a process of its own, which ends in the middle of a copy as if it were killed."""

    def die(done_bytes, total_bytes):
        if done_bytes >= done_limit_bytes:
            os._exit(9)

    entry = read_manifest(volume)["sdxl"]
    source = VolumeSource(volume, local)
    with source._copies.making("sdxl", render_manifest({"sdxl": entry})) as folder:
        copy_files(volume / "sdxl", folder / "sdxl", entry.files, die)


@pytest.mark.parametrize("done_bytes", [1, 1500])
def test_killed_copy_leaves_no_lock_and_nothing_that_looks_whole(
    source, volume, tmp_path, done_bytes
):
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=kill_at, args=(done_bytes, volume, tmp_path / "local"))
    child.start()
    child.join(20)
    assert child.exitcode == 9
    assert source.find(SDXL) is None
    assert bytes_below(source.fetch(SDXL).folder) == bytes_below(volume / "sdxl")


def test_who_waits_for_another_process_finds_its_copy(source, volume, tmp_path):
    entry = read_manifest(volume)["sdxl"]
    found = []
    with source._copies.making("sdxl", render_manifest({"sdxl": entry})) as folder:
        waiting = threading.Thread(target=lambda: found.append(source.fetch(SDXL)))
        waiting.start()
        copy_files(volume / "sdxl", folder / "sdxl", entry.files, no_progress)
        shutil.rmtree(volume / "sdxl")  # so that only this copy can be found
        assert not found
        source._copies.finish(render_manifest({"sdxl": entry}), entry)
    waiting.join(20)
    assert found == [source.find(SDXL)]


# --- what can be wrong -----------------------------------------------------------------------


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_flipped_byte_on_the_volume_is_named_and_the_deployments_fault(source, volume):
    """All hosts would read the same."""
    flip(volume / "sdxl" / UNET)
    with pytest.raises(ModelUnavailable, match=rf"{UNET} is damaged: .*scripts/bake"):
        source.fetch(SDXL)
    assert source.find(SDXL) is None
    assert not [path for path in bytes_below(source._copies.directory) if UNET in path]


def test_flipped_byte_is_the_deployments_fault_also_behind_a_damaged_beginning(volume, tmp_path):
    flip(volume / "sdxl" / UNET)
    write_files(tmp_path / "to", {f"{UNET}.part": b"garbage"})
    files = read_manifest(volume)["sdxl"].files
    with pytest.raises(ModelUnavailable, match=rf"{UNET} is damaged"):
        copy_files(volume / "sdxl", tmp_path / "to", files, no_progress)


def test_first_failure_is_raised_and_stops_the_other_files(tmp_path, monkeypatch):
    """The file that is asked for first is still being copied when the second one fails."""
    data = {"a.safetensors": b"a" * 5000, "z.safetensors": b"z" * 10}
    write_files(tmp_path / "from", data)
    files = [describe(path, each) for path, each in data.items()]
    flip(tmp_path / "from" / "z.safetensors", 3)
    read = copying._read
    has_failed = threading.Event()
    reads_after = 0

    def slow(file, path):
        nonlocal reads_after
        if path.name.startswith("a"):
            has_failed.wait(20)
            reads_after += 1
        return read(file, path)

    unlink = Path.unlink
    times: list[Path] = []

    def note(path, **options):
        unlink(path, **options)
        times.append(path)
        if len(times) == 2:  # read again, and given up
            has_failed.set()

    monkeypatch.setattr(f"{copying.__name__}.BLOCK_BYTES", 1)
    monkeypatch.setattr(copying, "_read", slow)
    monkeypatch.setattr(Path, "unlink", note)
    with pytest.raises(ModelUnavailable, match=r"z\.safetensors is damaged"):
        copy_files(tmp_path / "from", tmp_path / "to", files, no_progress)
    assert reads_after < 5000


def test_volume_that_reads_differently_each_time_is_the_hosts_fault(source, volume, monkeypatch):
    read = copying._read
    reads = 0

    def disturb(file, path):
        nonlocal reads
        block = bytearray(read(file, path))
        if UNET in str(path) and block:
            reads += 1
            block[reads] ^= 1
        return bytes(block)

    monkeypatch.setattr(copying, "_read", disturb)
    with pytest.raises(WeightsUnreadable, match="each time it is read"):
        source.fetch(SDXL)


def test_byte_that_is_misread_once_is_read_again(source, volume, monkeypatch):
    read = copying._read
    misread: list[Path] = []

    def disturb_once(file, path):
        block = read(file, path)
        if UNET in str(path) and not misread:
            misread.append(path)
            return b"x" + block[1:]
        return block

    monkeypatch.setattr(copying, "_read", disturb_once)
    assert bytes_below(source.fetch(SDXL).folder) == bytes_below(volume / "sdxl")
    assert misread


def test_missing_file_on_the_volume_is_the_deployments_fault(source, volume):
    (volume / "sdxl" / UNET).unlink()
    with pytest.raises(ModelUnavailable, match=rf"{UNET} .*cannot be opened .*scripts/bake"):
        source.fetch(SDXL)


@pytest.mark.parametrize("change_bytes", [-1, 1])
def test_file_of_another_size_on_the_volume_is_the_deployments_fault(source, volume, change_bytes):
    path = volume / "sdxl" / UNET
    os.truncate(path, path.stat().st_size + change_bytes)
    with pytest.raises(ModelUnavailable, match=rf"{UNET}: expected \d+ bytes .*, got \d+"):
        source.fetch(SDXL)


def test_read_error_of_the_volume_is_the_hosts_fault(source, monkeypatch):
    class BadSector(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    read = copying._read
    monkeypatch.setattr(copying, "_read", lambda file, path: read(BadSector(), path))
    with pytest.raises(WeightsUnreadable, match="Input/output error"):
        source.fetch(SDXL)


def test_damaged_manifest_on_the_volume_is_the_deployments_fault(source, volume):
    (volume / "manifest.toml").write_text("[models")
    with pytest.raises(InvalidSettings, match=r"volume/manifest\.toml"):
        source.fetch(SDXL)


@pytest.mark.parametrize("change", [{"files": ()}, {"vae": "vae"}])
def test_entry_that_does_not_list_all_files_is_refused(source, volume, change):
    entry = replace(read_manifest(volume)["sdxl"], **change)
    (volume / "manifest.toml").write_text(render_manifest({"sdxl": entry}))
    with pytest.raises(ModelUnavailable, match=r"does not list all files: .*scripts/bake"):
        source.fetch(SDXL)


def test_disk_without_room_says_what_is_needed_and_what_is_there(source, volume, monkeypatch):
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = read_manifest(volume)["sdxl"].size_bytes
    with pytest.raises(DiskFull, match=f"needs {needed} bytes .* 1000 free: give the worker"):
        source.fetch(SDXL)


def test_copy_that_cannot_fit_is_refused_before_it_is_begun(source, volume, monkeypatch):
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match="1000 free: give the worker more container disk"):
        source.find(SDXL)


def test_copy_may_fit_where_an_older_version_makes_room(source, volume, monkeypatch):
    source.fetch(SDXL)
    add_model(volume, "sdxl", revision="2")
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert source.find(SDXL) is None


def test_room_is_needed_only_for_what_is_missing(source, volume, monkeypatch):
    weights = source.fetch(SDXL)
    (weights.folder / "scheduler" / "scheduler_config.json").unlink()
    usage = shutil._ntuple_diskusage(10_000, 9_998, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert source.fetch(SDXL) == weights


def test_disk_that_fills_up_meanwhile_is_full(source, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFull, match=r"no room is left in .*: give the worker more"):
        source.fetch(SDXL)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_directory_that_nobody_may_write_is_the_deployments_fault(source, monkeypatch, code):
    def fail(file, mode):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ModelUnavailable, match="name a directory that the worker may write"):
        source.fetch(SDXL)


def test_progress_is_logged_in_tenths(source, caplog):
    caplog.set_level(logging.INFO)
    source.fetch(SDXL)
    percents = [each.percent for each in caplog.records if each.message.startswith("copying")]
    assert percents[-1] == 100
    assert percents == sorted(set(percents))
    assert len(percents) <= 11
