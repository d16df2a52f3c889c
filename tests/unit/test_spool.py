"""The spool on its disk: whole jobs or nothing, readable by their owner only, and never trusted."""

import errno
import os
import stat
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.factories import make_files

from pixpod.errors import SpoolFull
from pixpod.outputs.result_file import make_result
from pixpod.outputs.spool import Spool
from pixpod.outputs.spooled_job import SpooledJob

FILES = make_files(b"first picture", b"second picture")
FINGERPRINT = "0" * 64


def describe(job_name="job-1", files=FILES, fingerprint=FINGERPRINT):
    return SpooledJob(
        job_name=job_name,
        key_prefix="shop",
        name="poster",
        format=files.images[0].format,
        seeds=tuple(image.seed for image in files.images),
        may_use_bucket=True,
        result=make_result(files, files.images, fingerprint=fingerprint),
    )


def open_spool(directory, secret="hidden", max_bytes=1_000_000):
    return Spool(directory / "spool", secret=SecretStr(secret), max_bytes=max_bytes)


@pytest.fixture
def spool(tmp_path):
    """A spool with one job."""
    spool = open_spool(tmp_path)
    spool.keep(describe(), FILES.images)
    return spool


TOKEN = open_spool(Path("/nowhere")).token_of("job-1", FINGERPRINT)


def read(spool, token=TOKEN):
    job = spool.find(token)
    return job and spool.read_images(token, job)


def all_paths(directory):
    return list(directory.rglob("*"))


# --- whole jobs or nothing ------------------------------------------------------------------


def test_job_is_found_as_it_was_by_all_workers_of_the_deployment(spool, tmp_path):
    assert spool.find(TOKEN) == describe()
    assert read(open_spool(tmp_path)) == FILES.images


def test_job_that_is_not_there_is_not_found(spool, tmp_path):
    assert spool.find(spool.token_of("job-2", FINGERPRINT)) is None
    assert spool.find(spool.token_of("job-1", "1" * 64)) is None
    assert open_spool(tmp_path / "empty").find(TOKEN) is None
    assert open_spool(tmp_path / "empty").folders() == []


def test_removed_job_leaves_nothing(spool):
    spool.remove(TOKEN)
    spool.remove(TOKEN)
    assert spool.find(TOKEN) is None
    assert all_paths(spool.folder) == []


def test_only_the_owner_may_read_and_names_say_nothing(spool, tmp_path):
    paths = [tmp_path / "spool", *all_paths(tmp_path / "spool")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()}
    assert modes == {0o700}
    files = [path for path in paths if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len(files) == 3
    assert "job-1" not in "".join(map(str, paths))


def test_other_deployments_have_other_folders(spool, tmp_path):
    other = open_spool(tmp_path, secret="other")
    other.keep(describe(), FILES.images)
    assert (len(spool.folders()), len(other.folders())) == (1, 1)
    assert spool.folder != other.folder


def test_job_that_is_abandoned_leaves_nothing(tmp_path):
    spool = open_spool(tmp_path)
    spool.keep(describe(), FILES.images, is_abandoned=lambda: True)
    assert all_paths(spool.folder) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_that_fails_leaves_nothing(tmp_path, monkeypatch, number):
    def fail(file):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    spool = open_spool(tmp_path)
    with pytest.raises(OSError if number == errno.EIO else SpoolFull):
        spool.keep(describe(), FILES.images)
    assert all_paths(spool.folder) == []


def test_full_spool_deletes_nothing_and_says_what_to_do(spool, tmp_path):
    used = spool.size_bytes()
    more = make_files(b"x" * 100)
    for max_bytes in (used + 100, used + 99):
        small = open_spool(tmp_path, max_bytes=max_bytes)
        if max_bytes == used + 99:
            with pytest.raises(SpoolFull, match=r"scripts/upload_spool.*PIXPOD_SPOOL_MAX_BYTES"):
                small.keep(describe("job-3", more), more.images)
        else:
            small.keep(describe("job-2", more), more.images)
            small.remove(small.token_of("job-2", FINGERPRINT))
    assert read(spool) == FILES.images
    assert len(spool.folders()) == 1


def test_job_that_is_there_needs_no_room(spool, tmp_path):
    open_spool(tmp_path, max_bytes=1).keep(describe(), FILES.images)


# --- two workers ----------------------------------------------------------------------------


def test_second_execution_of_a_job_leaves_the_first_ones_images(spool):
    other = replace(FILES, images=make_files(b"other", b"pixels").images)
    spool.keep(describe(files=other), other.images)
    assert read(spool) == FILES.images


def test_workers_that_write_read_and_remove_one_job_never_see_a_part(tmp_path):
    spools = [open_spool(tmp_path) for _ in range(4)]
    seen: Counter[str] = Counter()

    def work(spool):
        for _ in range(60):
            spool.keep(describe(), FILES.images)
            try:
                found = read(spool)
            except FileNotFoundError:  # between its two steps
                seen["removed"] += 1
            else:
                assert found in (None, FILES.images)
                seen["found"] += found is not None
            spool.remove(TOKEN)
            seen["rounds"] += 1

    threads = [threading.Thread(target=work, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen["rounds"] == 4 * 60
    assert seen["found"] > 20
    assert all_paths(spools[0].folder) == []


# --- nothing is trusted ---------------------------------------------------------------------


def forge(path):
    path.write_bytes(path.read_bytes().replace(b'"poster"', b'"forged"'))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def inflate(path):
    with path.open("ab") as file:
        file.truncate(200_000)


def link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [forge, cut, empty, inflate, link, pipe])
def test_damaged_job_does_not_count_and_stays(spool, damage):
    damage(spool.folder / TOKEN / "job.sealed")
    with pytest.raises((ValueError, OSError)):
        spool.find(TOKEN)
    spool.keep(describe(), FILES.images)
    assert read(spool) == FILES.images
    names = sorted(path.name.partition(".")[2].rpartition(".")[2] for path in spool.folders())
    assert names == ["", "unusable"]


@pytest.mark.parametrize("damage", [cut, empty, inflate, link, pipe, Path.unlink])
def test_damaged_image_does_not_count(spool, damage):
    path = next((spool.folder / TOKEN).glob("1-*.png"))
    damage(path)
    job = spool.find(TOKEN)
    with pytest.raises((ValueError, OSError)):
        spool.read_images(TOKEN, job)
    spool.keep(describe(), FILES.images)
    assert read(spool) == FILES.images


def test_image_with_other_bytes_does_not_count(spool):
    path = next((spool.folder / TOKEN).glob("1-*.png"))
    path.write_bytes(path.read_bytes().upper())
    with pytest.raises(ValueError, match="the image that was written"):
        read(spool)


def test_job_that_was_copied_to_another_does_not_count(spool):
    token = spool.token_of("job-2", FINGERPRINT)
    (spool.folder / TOKEN).rename(spool.folder / token)
    with pytest.raises(ValueError, match="HMAC"):
        spool.find(token)


def test_folder_that_is_a_file_or_a_link_does_not_count(spool, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for make in (Path.touch, lambda path: path.symlink_to(elsewhere)):
        spool.remove(TOKEN)
        make(spool.folder / TOKEN)
        spool.keep(describe(), FILES.images)
        assert read(spool) == FILES.images
    assert all_paths(elsewhere) == []
