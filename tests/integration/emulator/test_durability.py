"""SIGKILL of the emulator with jobs in every state: what it has accepted outlives it."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SRC = Path(__file__).resolve().parents[3] / "src"
LIMIT_S = 60.0
POLL_S = 0.05
KEY = "key-of-the-test"

HANDLER = """
import fcntl, os, time
from pathlib import Path

import runpod

folder = Path(os.environ["FOLDER"])
life = (folder / "life").open("a")
fcntl.flock(life, fcntl.LOCK_EX)


def handler(job):
    wanted = job["input"]
    with (folder / "begun").open("a") as begun:
        begun.write(wanted["name"] + "\\n")
    while wanted.get("waits") and not (folder / "go").exists():
        time.sleep(0.02)
    return {"name": wanted["name"], "bucket": job.get("s3Config", {}).get("bucketName")}


runpod.serverless.start({"handler": handler})
"""
"""A worker, and whatever it has forked, holds the lock on `life` as long as any of them lives."""


def until(condition):
    """The first answer that is true."""
    deadline = time.monotonic() + LIMIT_S
    while not (held := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(POLL_S)
    return held


class Receiver:
    """Of webhooks: answers 500 until it `is_open`, and keeps what it has answered with 200."""

    def __init__(self):
        self.is_open = False
        self.num_refused = 0
        self.bodies: list[dict[str, Any]] = []
        receiver = self

        class Post(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_open = receiver.is_open
                if is_open:
                    receiver.bodies.append(json.loads(body))
                else:
                    receiver.num_refused += 1
                self.send_response(200 if is_open else 500)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Post)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver():
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(POLL_S,))
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


class Emulator:
    """A process of its own, which ends by SIGKILL only."""

    def __init__(self, folder, process, url):
        self.folder = folder
        self.process = process
        self.url = url

    def call(self, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)

    def run(self, name, **extras):
        given = {"name": name, "waits": extras.pop("waits", False)}
        return self.call("/v2/ep/run", {"input": given, **extras})["id"]

    def status(self, job_id):
        return self.call(f"/v2/ep/status/{job_id}")

    def details(self, job_id):
        return self.call(f"/emulator/jobs/{job_id}")

    def wait_for(self, job_id, status):
        until(lambda: self.status(job_id)["status"] == status)

    def wait_for_webhook(self, job_id):
        until(lambda: self.details(job_id)["webhook"]["delivered_at"])

    def kill(self):
        """Returns when its workers are gone too."""
        self.process.kill()
        self.process.wait()
        with (self.folder / "life").open("a") as life:
            until(lambda: is_free(life))


def is_free(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def started(folder):
    """An emulator with one worker, on the database that is in the folder."""
    flags = {
        "--endpoint": "ep",
        "--handler": folder / "handler.py",
        "--workers-min": 1,
        "--workers-max": 1,
        "--env": f"FOLDER={folder}",
        "--port": 0,
        "--api-key": KEY,
        "--state-dir": folder / "state",
    }
    behaviour = {"webhook_retry_interval_s": 0.5, "webhook_retries": 1000}
    arguments = [str(word) for flag in flags.items() for word in flag]
    for setting in behaviour.items():
        arguments += ["--behaviour", "{}={}".format(*setting)]
    with ExitStack() as resources:
        log = resources.enter_context((folder / "log").open("a"))
        process = resources.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "runpod_emulator", "serve", *arguments],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SRC), "HOME": str(folder)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        resources.callback(process.kill)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield Emulator(folder, process, found[0])
                return
        raise AssertionError((folder / "log").read_text())


def test_sigkill_loses_no_job_no_result_and_no_webhook(tmp_path, receiver):
    (tmp_path / "handler.py").write_text(HANDLER, encoding="utf-8")

    with started(tmp_path) as emulator:
        finished = emulator.run("finished", webhook=receiver.url)
        emulator.wait_for(finished, "COMPLETED")
        running = emulator.run("running", waits=True)
        until(lambda: "running" in (tmp_path / "begun").read_text())
        first, second = (
            emulator.run(name, webhook=receiver.url, s3Config={"bucketName": "results"})
            for name in ("first", "second")
        )
        until(lambda: receiver.num_refused)
        before = emulator.status(finished)
        statuses = [emulator.status(each)["status"] for each in (running, first, second)]
        assert statuses == ["IN_PROGRESS", "IN_QUEUE", "IN_QUEUE"]
        emulator.kill()

    (tmp_path / "go").touch()
    receiver.is_open = True
    with started(tmp_path) as emulator:
        assert emulator.status(finished) == before
        for job_id in (running, first, second):
            emulator.wait_for(job_id, "COMPLETED")
        assert emulator.status(running)["output"] == {"name": "running", "bucket": None}
        assert emulator.status(second)["output"] == {"name": "second", "bucket": "results"}
        names = (tmp_path / "begun").read_text().split()
        assert names == ["finished", "running", "running", "first", "second"]

        executions = {
            job_id: (details["executions"], details["retries"])
            for job_id in (finished, running, first, second)
            if (details := emulator.details(job_id))
        }
        assert executions == {finished: (1, 0), running: (2, 0), first: (1, 0), second: (1, 0)}
        history = [
            (each["status"], each["reason"]) for each in emulator.details(running)["history"]
        ]
        assert history == [
            ("IN_QUEUE", "submitted"),
            ("IN_PROGRESS", "taken"),
            ("IN_QUEUE", "emulator restarted"),
            ("IN_PROGRESS", "taken"),
            ("COMPLETED", "result"),
        ]
        jobs = emulator.call("/v2/ep/health")["jobs"]
        assert (jobs["completed"], jobs["failed"], jobs["retried"]) == (4, 0, 0)

        for job_id in (finished, first, second):
            emulator.wait_for_webhook(job_id)
        told = {body["id"]: body["output"]["name"] for body in receiver.bodies}
        assert told == {finished: "finished", first: "first", second: "second"}
        assert emulator.details(running)["webhook"] is None
        emulator.kill()
