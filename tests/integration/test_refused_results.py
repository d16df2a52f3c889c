"""Results that are refused for good after the upload: the job that comes again costs no GPU time.

The worker is the product's with the real SDK and a real bucket; its engine counts its calls.
"""

import json
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.stub_platform import LIMIT_S, RESET, StubPlatform, running_stub, running_worker

from pixpod.serving import posting
from pixpod.serving.job_results import ANSWERED_FROM_STORED

pytest_plugins = ["integration.s3_servers"]

HANDLER = Path(__file__).resolve().parents[1] / "support" / "handlers" / "fake_engine.py"
NUM_STEPS = 3
GIVEN = {"model": "sd15-tiny", "prompt": "a red circle", "num_inference_steps": NUM_STEPS}


class Desk:
    """A platform and a bucket for one worker at a time."""

    def __init__(self, stub: StubPlatform, bucket, folder: Path) -> None:
        self.stub = stub
        self.bucket = bucket
        self._folder = folder
        self._calls = folder / "calls"
        self._calls.touch()

    @contextmanager
    def worker(self):
        self.stub.is_polled.clear()
        env = {
            **self.bucket.environ(),
            "PIXPOD_MODELS": "sd15-tiny",
            "PIXPOD_DEVICE": "cpu",
            "FAKE_ENGINE_S": "0.2",
            "COUNT_FILE": str(self._calls),
        }
        with running_worker(self.stub, HANDLER, self._folder, env) as worker:
            yield worker

    def num_calls(self) -> int:
        return len(self._calls.read_text().splitlines())

    def give(self, job_id: str, **given) -> dict:
        """Hand the job out, and return the reply that is posted first."""
        self.stub.give(job_id, {**GIVEN, **given})
        return self.next_reply(job_id)

    def next_reply(self, job_id: str) -> dict:
        post = self.stub.next_post()
        assert post.job_id == job_id
        return json.loads(post.body)["output"]

    def wait_for_result_file(self, job_id: str) -> None:
        wait_until(
            lambda: any(
                key.startswith(f"{job_id}/") and key.endswith(".result")
                for key in self.bucket.all_keys()
            )
        )

    def check_again(self, job_id: str, first: dict, **given) -> None:
        """Hand the job out again: it is answered with the same images and no denoiser call."""
        self.stub.outcomes.clear()
        before = self.num_calls()
        second = self.give(job_id, **given)
        assert digests(second) == digests(first)
        assert ANSWERED_FROM_STORED in second["warnings"]
        assert self.num_calls() == before


def digests(reply: dict) -> list[str]:
    return [image["sha256"] for image in reply["images"]]


def wait_until(holds, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def desk(juicefs, tmp_path):
    with running_stub() as stub:
        yield Desk(stub, juicefs, tmp_path)


def test_result_is_refused(desk):
    with desk.worker() as worker:
        desk.stub.outcomes.append(404)
        first = desk.give("gone")
        desk.wait_for_result_file("gone")
        desk.check_again("gone", first)
    assert worker.log().count("result not delivered") == 1
    assert desk.num_calls() == NUM_STEPS


def test_result_and_its_smaller_form_are_refused(desk):
    inline = {"output": {"delivery": "inline"}}
    with desk.worker() as worker:
        desk.stub.outcomes += [413, 404]
        first = desk.give("large", **inline)
        smaller = desk.next_reply("large")
        assert first["images"][0]["data"] and smaller["images"][0]["url"]
        assert digests(smaller) == digests(first)
        desk.wait_for_result_file("large")
        desk.check_again("large", first, **inline)
    assert worker.log().count("result not delivered") == 1
    assert desk.num_calls() == NUM_STEPS


def test_worker_is_killed_after_the_upload(desk):
    desk.stub.outcomes += [RESET] * 10
    with desk.worker() as worker:
        first = desk.give("killed")
        desk.wait_for_result_file("killed")
        worker.signal(signal.SIGKILL)
        worker.wait()
    with desk.worker():
        desk.check_again("killed", first)
    assert desk.num_calls() == NUM_STEPS


@pytest.mark.acceptance
def test_posts_are_reset_until_their_time_is_over(desk):
    desk.stub.outcomes += [RESET] * 1_000
    with desk.worker() as worker:
        first, began_at = desk.give("reset"), time.monotonic()
        wait_until(lambda: "result not delivered" in worker.log(), 2 * posting.LIMIT_S)
        tried_s = time.monotonic() - began_at
        num_posts = 1 + desk.stub.posts.qsize()
        while desk.stub.posts.qsize():
            assert desk.next_reply("reset") == first
        desk.check_again("reset", first)
    assert desk.num_calls() == NUM_STEPS
    print(f"\n{num_posts} posts of a result were reset in {tried_s:.0f} s, then it was dropped")
    assert tried_s > posting.LIMIT_S - posting.LONGEST_PAUSE_S - 1
