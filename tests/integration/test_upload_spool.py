"""scripts/upload_spool: from the spool on a disk into a real bucket, as table, JSON and errors."""

import asyncio
import hashlib
import json
import re
from pathlib import Path

import pytest
from support.s3_server import S3Server

from pixpod.bootstrap import build_spool, build_worker
from pixpod.outputs.spool import Spool
from pixpod.settings import Settings
from pixpod.testing.fake_engine import FakeEngine
from pixpod_tools.upload_spool.cli import main

pytest_plugins = ["integration.s3_servers"]

GIVEN = {"model": "sd15-tiny", "prompt": "a red circle", "num_inference_steps": 1}


@pytest.fixture
def environ(tmp_path: Path, juicefs: S3Server) -> dict[str, str]:
    return {
        "PIXPOD_MODELS": "sd15-tiny",
        "PIXPOD_S3_BUCKET": juicefs.bucket,
        "PIXPOD_S3_PREFIX": re.sub(r"[^a-z0-9]", "", tmp_path.name),
        "PIXPOD_S3_ENDPOINT_URL": juicefs.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": juicefs.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": juicefs.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "PIXPOD_KEY_SECRET": "the same on all",
        "PIXPOD_SPOOL_DIR": str(tmp_path / "spool"),
        "PIXPOD_MAX_REPLY_BYTES": "1000",
    }


def run_jobs(environ, *jobs, seconds=0.0, **changes):
    """The replies of a worker, one job after the other."""
    worker = build_worker(Settings.from_env(environ | changes))
    worker.engine = FakeEngine(seconds=seconds)

    async def run():
        replies = [await worker.handle(job) for job in jobs]
        if worker.results is not None:
            await worker.results.settle()
        return replies

    return asyncio.run(run())


def job(job_id, **given):
    return {"id": job_id, "input": {**GIVEN, **given}}


JOBS = (job("first", num_images=2), job("second", output={"key_prefix": "shop", "name": "poster"}))


def open_spool(environ) -> Spool:
    spool = build_spool(Settings.from_env(environ))
    assert spool is not None
    return spool


@pytest.fixture
def spool(environ):
    """A spool with the images of JOBS."""
    replies = run_jobs(environ, *JOBS, PIXPOD_S3_BUCKET="missing")
    assert all("in the deployment's spool" in reply["error"] for reply in replies)
    return open_spool(environ)


@pytest.fixture
def upload(environ, capsys):
    """The exit status, the table, the jobs of the last line, and what was complained of."""

    def run(*arguments, **changes):
        capsys.readouterr()
        status = main(list(arguments), environ | changes)
        out, err = capsys.readouterr()
        table, _, last = out.rstrip("\n").rpartition("\n")
        return status, table, json.loads(last)["jobs"] if last else None, err

    return run


def test_images_are_uploaded_and_their_jobs_are_answered_from_the_bucket(
    environ, spool, upload, juicefs
):
    digests = {path.stem.partition("-")[2] for path in spool.folder.glob("*/*.png")}
    status, table, jobs, err = upload()
    assert status == 0
    assert [each["job"] for each in jobs] == ["first", "second"]
    assert table.count(" uploaded  ") == 2
    assert "upload: 100%" in err
    keys = [key for each in jobs for key in each["keys"]]
    stored = {hashlib.sha256(juicefs.get(key)["Body"]).hexdigest() for key in keys}
    assert stored == digests
    assert spool.folders() == []

    replies = run_jobs(environ, *JOBS, seconds=5)
    assert [image["key"] for reply in replies for image in reply["images"]] == keys
    assert all(reply["cost"]["gpu_ms"] == 0 for reply in replies)


def test_dry_run_changes_nothing_and_needs_no_bucket(environ, spool, upload):
    status, table, jobs, err = upload("--dry-run", PIXPOD_S3_BUCKET="", PIXPOD_S3_ENDPOINT_URL="")
    assert (status, err) == (0, "")
    assert table.count("to be uploaded") == 2
    assert re.search(r"^first +2 +\d+\.\d +\d{4}-\d\d-\d\d \d\d:\d\d UTC ", table, re.MULTILINE)
    assert len(spool.folders()) == 2
    assert all(each["keys"] == [] for each in jobs)


def test_bucket_that_fails_ends_the_upload_and_nothing_is_deleted(spool, upload):
    status, table, _, err = upload(PIXPOD_S3_SECRET_ACCESS_KEY="wrong")
    assert status == 1
    assert table.count("the bucket failed") == 2
    assert "storage_denied: " in err and "PIXPOD_S3_SECRET_ACCESS_KEY" in err
    assert err.endswith("correct this and run it again.\n")
    assert len(spool.folders()) == 2


def test_damaged_unfinished_and_private_folders_stay_and_are_listed(environ, spool, upload):
    private = job("private", output={"delivery": "directory", "fallback": False})
    Path(environ["PIXPOD_SPOOL_DIR"], "file").touch()
    output_dir = {"PIXPOD_OUTPUT_DIR": environ["PIXPOD_SPOOL_DIR"] + "/file"}
    worker_environ = environ | output_dir
    (reply,) = run_jobs(worker_environ, private)
    assert "in the deployment's spool" in reply["error"]
    next(spool.folders()[0].glob("1-*.png")).write_bytes(b"another")
    (spool.folder / ".0.tmp").mkdir()
    (spool.folder / "0\x1b.unusable").mkdir()
    status, table, jobs, _ = upload()
    assert status == 1
    outcomes = {each["job"] or each["folder"]: each["outcome"] for each in jobs}
    assert outcomes == {
        "first": "unreadable",
        "second": "uploaded",
        "private": "private",
        ".0.tmp": "unfinished",
        "0\x1b.unusable": "unreadable",
    }
    assert "stays: its caller keeps images out of the bucket" in table
    assert "0?.unusable" in table and "\x1b" not in table
    assert len(spool.folders()) == 4


def test_job_that_a_worker_delivers_meanwhile_is_no_fault(environ, spool, upload, monkeypatch):
    find = Spool.find

    def find_once(self, token):
        found = find(self, token)
        if found is not None:
            self.remove(token)
        return found

    monkeypatch.setattr(Spool, "find", find_once)
    status, table, _, _ = upload()
    assert status == 0
    assert table.count("delivered by a worker meanwhile") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PIXPOD_S3_BUCKET": "", "PIXPOD_S3_ENDPOINT_URL": ""}, ("PIXPOD_S3_BUCKET",)),
        ({"PIXPOD_SPOOL_DIR": ""}, ("PIXPOD_SPOOL_DIR", "--dir")),
        ({"PIXPOD_SPOOL_DIR": "/nowhere"}, ("directory", "/nowhere")),
        ({"PIXPOD_KEY_SECRET": "other"}, ("PIXPOD_KEY_SECRET", "other deployments")),
        ({"PIXPOD_S3_CHECKSUMS": "x"}, ("PIXPOD_S3_CHECKSUMS",)),
    ],
)
def test_what_is_set_wrongly_is_named(spool, upload, changes, words):
    status, table, _, err = upload(**changes)
    assert (status, table) == (1, "")
    assert all(word in err for word in ("scripts/upload_spool: invalid_settings: ", *words))
    assert len(spool.folders()) == 2


def test_empty_spool_is_no_fault(environ, upload):
    Path(environ["PIXPOD_SPOOL_DIR"]).mkdir()
    status, table, jobs, _ = upload()
    assert (status, jobs) == (0, [])
    assert table.endswith(": 0 jobs, 0.0 MB")
