"""Many jobs while workers end, and bucket, receiver and posts of results fail: nothing is lost."""

import hashlib
import io
import signal
from dataclasses import replace

import pytest
from PIL import Image
from support.chaos import Action, Extent
from support.chaos_run import Ended, run_jobs, table
from support.sdk2 import sdk2_environ

from pixpod.testing.fake_engine import colour_of

pytest_plugins = ["integration.s3_servers"]

FEW = Extent(num_jobs=60, num_signals=3, num_outages=2, num_faults=10, outage_s=3)
KILLED_BY_FAULT = "fault: kill: ended by signal 9"

SOME = Extent(num_jobs=500, num_signals=12, num_outages=4, num_faults=80, outage_s=6)
MANY = Extent(num_jobs=2000, num_signals=40, num_outages=12, num_faults=300, outage_s=6)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((FEW, "1.12"), id="60 jobs"),
        pytest.param((MANY, "1.12"), id="2000 jobs", marks=pytest.mark.acceptance),
        pytest.param((SOME, "2.0"), id="500 jobs, SDK 2.0", marks=pytest.mark.acceptance),
    ],
)
def run(request, juicefs, tmp_path_factory):
    extent, sdk = request.param
    more = sdk2_environ() if sdk == "2.0" else {}
    finished = run_jobs(extent, juicefs, tmp_path_factory.mktemp("chaos"), more)
    print(f"\n{extent.num_jobs} jobs, SDK {sdk}{table(finished)}")
    return finished


def test_each_job_has_one_final_state(run):
    assert [job.id for job in run.jobs if not has_one_final_state(job)] == []


def has_one_final_state(job: Ended) -> bool:
    wanted = "COMPLETED" if job.order.is_valid else "FAILED"
    finals = [status for status in job.history if status not in ("IN_QUEUE", "IN_PROGRESS")]
    is_refused = job.body.get("error", "").startswith("invalid_input: ")
    return (
        finals == [job.history[-1]] == [job.body["status"]] == [wanted]
        and is_refused is not job.order.is_valid
    )


def test_completed_jobs_have_exactly_their_images(run):
    assert [job.id for job in run.jobs if not has_its_images(job)] == []


def has_its_images(job: Ended) -> bool:
    seeds = job.order.seeds
    colours = [colour_of(job.order.input["prompt"], seed) for seed in seeds]
    return (
        [image["seed"] for image in job.images] == seeds
        and digests(job) == [hashlib.sha256(file).hexdigest() for file in job.files]
        and [colour(file) for file in job.files] == colours
        and [key for key in job.keys if key.endswith(".png")]
        == sorted(image["key"] for image in job.images)
    )


def digests(job: Ended) -> list[str]:
    return [image["sha256"] for image in job.images]


def colour(file: bytes) -> bytes:
    """Return the only colour of a file's image, nothing if it has others."""
    pixels = Image.open(io.BytesIO(file)).convert("RGB").tobytes()
    return pixels[:3] if pixels == pixels[:3] * (len(pixels) // 3) else b""


def test_each_final_event_arrived_or_is_a_dead_letter_that_is_sent_again(run):
    assert run.num_refused_events == 0
    silent = [job.id for job in run.jobs if job.id not in run.arrived]
    assert len(silent) <= run.num_letters
    assert run.redelivery.stdout.endswith(f"{run.num_letters} delivered, 0 left\n")
    assert run.redelivery.returncode == 0, run.redelivery.stderr
    assert [job.id for job in run.jobs if not has_its_event(job)] == []


def has_its_event(job: Ended) -> bool:
    """It may have arrived more than once, but with one id and what the reply says."""
    wanted = "completed" if job.order.is_valid else "failed"
    sent = [[image["sha256"] for image in event.data.get("images", [])] for event in job.events]
    return (
        len({event.id for event in job.events}) == 1
        and {event.type for event in job.events} == {wanted}
        and all(each == digests(job) for each in sent)
        and not any(key.endswith(".dead-letter") for key in job.keys)
    )


def test_terminated_workers_exit_with_0(run):
    terminated = [each for each, sent in run.chaos.signals.items() if sent is signal.SIGTERM]
    ends = [run.chaos.ends[each] for each in terminated]
    assert len(ends) == run.chaos.num_done[Action.TERMINATE]
    assert [end for end in ends if end not in ("exited with 0", KILLED_BY_FAULT)] == []


def test_jobs_whose_results_were_lost_are_answered_from_the_bucket(run):
    assert any(job.is_stored for job in run.jobs)


class TestWhatIsNoticed:
    """The checks are of use: a job that is not as it should be fails them."""

    @pytest.fixture
    def job(self, run):
        return next(job for job in run.jobs if len(job.images) == 2 and job.events)

    def test_second_end(self, job):
        assert has_one_final_state(job)
        assert not has_one_final_state(replace(job, history=[*job.history, "COMPLETED"]))

    def test_other_end(self, job):
        assert not has_one_final_state(replace(job, order=replace(job.order, is_valid=False)))

    def test_image_that_is_missing(self, job):
        output = {**job.body["output"], "images": job.images[:1]}
        fewer = replace(job, body={**job.body, "output": output}, files=job.files[:1])
        assert has_its_images(job)
        assert not has_its_images(fewer)

    def test_bytes_of_another_image(self, job):
        assert not has_its_images(replace(job, files=job.files[::-1]))

    def test_image_of_another_seed(self, job):
        order = replace(job.order, input={**job.order.input, "prompt": "another"})
        assert not has_its_images(replace(job, order=order))

    def test_file_that_is_no_image_of_the_job(self, job):
        assert not has_its_images(replace(job, keys=[*job.keys, f"{job.id}/other.png"]))

    def test_event_that_is_missing(self, job):
        assert not has_its_event(replace(job, events=[]))

    def test_second_id(self, job):
        other = replace(job.events[0], id="msg_other")
        assert has_its_event(job)
        assert not has_its_event(replace(job, events=[*job.events, other]))

    def test_event_of_another_end(self, job):
        other = replace(job.events[0], type="failed")
        assert not has_its_event(replace(job, events=[*job.events, other]))
