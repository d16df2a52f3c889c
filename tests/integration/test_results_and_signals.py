"""The real SDK with the product's worker: no result is lost to a fault, no job to a signal."""

import json
import queue
import time
from pathlib import Path

import pytest
from support.stub_platform import HOLD_S, LIMIT_S, RESET, StubPlatform, running_stub, running_worker

from pixpod.testing.scripted_engine import ScriptedTimes
from pixpod.testing.scripted_worker import HANDLER, ScriptedWorker

pytestmark = pytest.mark.sdk

BROKEN_GPU = Path(__file__).resolve().parents[1] / "support" / "handlers" / "broken_gpu.py"
GIVEN = {"model": "sdxl-tiny", "prompt": "a red circle", "num_inference_steps": 4}
QUICK = ScriptedWorker(times=ScriptedTimes(batch_s=0.05, image_s=0.0, max_batch_size=1))
SLOW = ScriptedWorker(
    times=ScriptedTimes(batch_s=3.0, image_s=0.0, max_batch_size=1), max_concurrency=2
)


class TestFaultsOfPosts:
    """One worker after the other jobs."""

    @pytest.fixture(scope="class")
    @classmethod
    def stub(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("posts")
        with running_stub() as stub, running_worker(stub, HANDLER, folder, QUICK.environ()):
            yield stub

    @pytest.fixture(autouse=True)
    def clean(self, stub):
        yield
        assert stub.outcomes == []
        with pytest.raises(queue.Empty):
            stub.posts.get(timeout=0.6)  # longer than the first pause

    def posts_of(self, stub: StubPlatform, job_id: str, outcomes: list) -> list[bytes]:
        stub.outcomes += outcomes
        stub.give(job_id, GIVEN)
        posts = [stub.next_post() for _ in range(len(outcomes) + 1)]
        assert {post.job_id for post in posts} == {job_id}
        return [post.body for post in posts]

    @pytest.mark.parametrize("outcome", [RESET, 429])
    def test_result_is_delivered_at_the_third_try(self, stub, outcome):
        bodies = self.posts_of(stub, f"twice-{outcome}", [outcome, outcome])
        assert len(set(bodies)) == 1
        assert json.loads(bodies[0])["output"]["images"]

    def test_result_that_is_too_large_is_followed_by_an_error(self, stub):
        """This deployment has no bucket."""
        large, small = self.posts_of(stub, "large", [413])
        assert json.loads(large)["output"]["images"][0]["data"]
        assert json.loads(small)["error"].startswith("result_too_large: ")

    def test_result_of_a_job_that_is_gone_is_not_posted_again(self, stub):
        stub.outcomes.append(404)
        stub.give("gone", GIVEN)
        assert stub.next_post().outcome == 404


class TestSignals:
    @pytest.fixture
    def stub(self):
        with running_stub() as stub:
            yield stub

    def test_idle_worker_exits_at_once(self, stub, tmp_path):
        with running_worker(stub, HANDLER, tmp_path, QUICK.environ()) as worker:
            time.sleep(0.3)
            began_at = time.monotonic()
            worker.signal()
            assert worker.wait() == 0
            assert time.monotonic() - began_at < HOLD_S / 10
        assert stub.num_closed_polls == 1

    def test_job_that_was_sent_before_the_signal_is_run(self, stub, tmp_path):
        with running_worker(stub, HANDLER, tmp_path, QUICK.environ()) as worker:
            time.sleep(0.3)
            stub.give("job", GIVEN)
            assert stub.has_sent_job.wait(LIMIT_S)
            worker.signal()
            assert stub.next_post().job_id == "job"
            assert worker.wait() == 0

    def test_job_that_comes_with_the_signal_is_run_or_stays_with_the_platform(self, stub, tmp_path):
        with running_worker(stub, HANDLER, tmp_path, QUICK.environ()) as worker:
            time.sleep(0.3)
            worker.signal()
            stub.give("job", GIVEN)
            assert worker.wait() == 0
        assert stub.num_waiting + stub.posts.qsize() == 1

    def test_running_jobs_are_finished_and_can_still_be_stopped(self, stub, tmp_path):
        with running_worker(stub, HANDLER, tmp_path, SLOW.environ()) as worker:
            stub.give("first", GIVEN)
            stub.give("second", GIVEN)
            time.sleep(1.7)  # the SDK takes the second a second later
            assert stub.posts.empty()
            worker.signal()
            worker.signal()
            stub.stop_job("second")
            post = stub.next_post()
            assert (post.job_id, "error" in json.loads(post.body)) == ("first", False)
            assert worker.wait() == 0
            assert "Stopping job" in worker.log()
        assert stub.posts.empty()


def test_worker_whose_gpu_is_broken_ends_once_its_jobs_are_reported(tmp_path):
    with running_stub() as stub, running_worker(stub, BROKEN_GPU, tmp_path, {}) as worker:
        stub.give("first", GIVEN)
        body = json.loads(stub.next_post().body)
        assert body["error"].startswith("device_unavailable: ")
        assert body["stopPod"]
        posted_at = time.monotonic()
        assert worker.wait() == 1
        assert time.monotonic() - posted_at < HOLD_S / 10
        assert stub.num_closed_polls == 1
