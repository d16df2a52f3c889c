"""A worker that is still loading: who waits for what, and what a warm-up gives way to."""

import asyncio
import threading
import time

import pytest
from support.factories import make_request, make_settings

from pixpod.bootstrap import build_engine
from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.timeline import BootTimeline, since_process_start

LONG_S = 120


class HeldBack:
    """The sources of a deployment, one model of which takes as long as a test likes."""

    def __init__(self, locator, model):
        self._locator = locator
        self._model = model
        self.release = threading.Event()
        self.fault = None

    def find(self, spec):
        return None if spec.name == self._model else self._locator.find(spec)

    def bring(self, spec):
        if spec.name == self._model:
            assert self.release.wait(LONG_S)
            if self.fault:
                raise self.fault
        return self._locator.bring(spec)


@pytest.fixture
def make_engine():
    made = []

    def make(**environ):
        timeline = BootTimeline(since_process_start())
        engine = build_engine(make_settings(PIXPOD_DEVICE="cpu", **environ), timeline)
        made.append(engine)
        return engine, timeline

    yield make
    for engine in made:
        engine.stop()


@pytest.fixture
def held_back(make_engine):
    """A booting engine of three models, the first of which does not get its weights yet."""
    engine, timeline = make_engine(PIXPOD_PRELOAD="true")
    loader = engine._loader
    loader._locator = locator = HeldBack(loader._locator, "flux-tiny")
    engine.start()
    yield engine, locator, timeline
    locator.release.set()


FLUX = {
    "model": "flux-tiny",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "max_sequence_length": 48,
}


def test_job_waits_for_its_own_model_only(held_back):
    engine, locator, timeline = held_back

    async def draw():
        waiting = asyncio.create_task(engine.generate(make_request(**FLUX)))
        other = await asyncio.wait_for(engine.generate(make_request()), LONG_S)
        assert other.images
        assert not waiting.done()
        locator.release.set()
        return await asyncio.wait_for(waiting, LONG_S)

    generation = asyncio.run(draw())
    moments = {span.subject: span.began_s for span in timeline.spans() if span.phase == "ready"}
    assert moments["sdxl-tiny"] < moments["flux-tiny"]
    assert generation.timings_ms["load"] > generation.timings_ms["queue"]


def test_job_that_waits_for_its_model_can_be_cancelled(held_back):
    engine, locator, _ = held_back

    async def cancel_one():
        task = asyncio.create_task(engine.generate(make_request(**FLUX)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, LONG_S)
        locator.release.set()
        return await asyncio.wait_for(engine.generate(make_request(**FLUX)), LONG_S)

    assert asyncio.run(cancel_one()).images, "the load that it waited for went on"


def test_deployment_fault_of_one_model_leaves_the_others_alone(held_back):
    engine, locator, _ = held_back
    locator.fault = ModelUnavailable("flux-tiny is not there")
    locator.release.set()
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="is not there"):
            asyncio.run(engine.generate(make_request(**FLUX)))
    assert asyncio.run(engine.generate(make_request())).images


def test_host_fault_is_tried_again_where_the_worker_stays(held_back):
    """At a desk; on the platform the process ends."""
    engine, locator, _ = held_back
    locator.fault = WeightsUnreadable("a hiccup")
    locator.release.set()
    with pytest.raises(WeightsUnreadable):
        asyncio.run(engine.generate(make_request(**FLUX)))
    locator.fault = None
    assert asyncio.run(engine.generate(make_request(**FLUX))).images


def warmed(timeline):
    return [span.subject for span in timeline.spans() if span.phase == "warm"]


def wait_until(condition):
    deadline_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_idle_worker_draws_each_size_with_each_model_alone_and_as_a_batch(make_engine):
    engine, timeline = make_engine(
        PIXPOD_PRELOAD="true",
        PIXPOD_MODELS="sdxl-tiny,sd15-tiny",
        PIXPOD_WARMUP_SIZES="64x64,64x96,4096x4096",
    )
    engine.start()
    assert not engine.is_warm
    wait_until(lambda: len(warmed(timeline)) == 8)
    wait_until(lambda: engine.is_warm)
    assert sorted(warmed(timeline)) == ["sd15-tiny"] * 4 + ["sdxl-tiny"] * 4


def test_boot_is_told_when_all_is_loaded_and_with_the_first_image(make_engine, caplog):
    engine, _ = make_engine(PIXPOD_PRELOAD="true", PIXPOD_MODELS="sdxl-tiny,sd15-tiny")
    with caplog.at_level("INFO", logger="pixpod"):
        engine.start()
        wait_until(lambda: "boot timeline" in caplog.messages)
        asyncio.run(engine.generate(make_request()))
        asyncio.run(engine.generate(make_request()))
    first, *_, last = (r.spans for r in caplog.records if r.message == "boot timeline")
    ready = [span["subject"] for span in first if span["phase"] == "ready"]
    assert sorted(ready) == ["sd15-tiny", "sdxl-tiny"]
    assert [span["subject"] for span in last if span["phase"] == "first_image"] == ["sdxl-tiny"]
    read = {
        span["subject"].split("/")[0]: span["size_bytes"] for span in last if span["size_bytes"]
    }
    assert read.keys() == {"sdxl-tiny", "sd15-tiny"}


def test_warm_up_gives_way_to_a_job_and_is_made_up_for(make_engine, monkeypatch):
    """The first warm-up is stopped in the middle, however fast the machine is."""
    from pixpod.engine.execution.model_runner import ModelRunner

    is_drawing, may_go_on = threading.Event(), threading.Event()
    draw = ModelRunner.draw

    def hold_the_first(drawer, model, parts, on_step):
        if not is_drawing.is_set():
            is_drawing.set()
            assert may_go_on.wait(LONG_S)
        return draw(drawer, model, parts, on_step)

    monkeypatch.setattr(ModelRunner, "draw", hold_the_first)
    engine, timeline = make_engine(
        PIXPOD_PRELOAD="true", PIXPOD_MODELS="sdxl-tiny", PIXPOD_WARMUP_SIZES="64x64"
    )
    engine.start()
    assert is_drawing.wait(LONG_S)

    async def job():
        task = asyncio.create_task(engine.generate(make_request()))
        await asyncio.sleep(0.05)
        may_go_on.set()
        return await asyncio.wait_for(task, LONG_S)

    generation = asyncio.run(job())
    assert generation.images
    assert not engine.is_warm
    wait_until(lambda: engine.is_warm)
    interrupted, whole, _ = (span for span in timeline.spans() if span.phase == "warm")
    (first_image,) = (span for span in timeline.spans() if span.phase == "first_image")
    assert interrupted.ended_s < first_image.began_s < whole.ended_s
