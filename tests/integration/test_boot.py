"""A worker that is still loading: who waits for what, and what a warm-up gives way to."""

import asyncio
import threading
import time
from concurrent.futures import Future

import pytest
from support.factories import CATALOG, make_request

from pixpod.engine.engine import DiffusionEngine
from pixpod.engine.execution.runnable_model import RunnableModel
from pixpod.engine.loading.loader import ModelLoader
from pixpod.errors import ModelUnavailable, WeightsUnreadable
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.timeline import BootTimeline, since_process_start
from pixpod.weights.prefetch import Verify
from pixpod.weights.sources import BakedSource, WeightsLocator

LONG_S = 120
MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
SHIPPED = WeightsLocator([BakedSource(SOURCE_WEIGHTS_DIR)])


class SlowLocator:
    """Finds the weights of one model as late as a test likes."""

    def __init__(self, model):
        self._model = model
        self.release = threading.Event()
        self.fault = None

    def find(self, spec):
        return None if spec.name == self._model else SHIPPED.find(spec)

    def fetch(self, spec):
        if spec.name == self._model:
            assert self.release.wait(LONG_S)
            if self.fault:
                raise self.fault
        return SHIPPED.fetch(spec)


def make_loader(locator, timeline, names):
    return ModelLoader(
        models={name: CATALOG[name] for name in names},
        locator=locator,
        device="cpu",
        requested_precision=lambda name: None,
        accepted_licences=frozenset(),
        verify=Verify.CHUNKS,
        timeline=timeline,
        on_host_fault=lambda error: None,
    )


@pytest.fixture
def make_engine():
    made = []

    def make(*names, locator=SHIPPED, sizes=(), wrap=lambda loader: loader):
        timeline = BootTimeline(since_process_start())
        engine = DiffusionEngine(
            models={name: CATALOG[name] for name in names},
            loader=wrap(make_loader(locator, timeline, names)),
            timeline=timeline,
            preload=True,
            warmup_sizes=sizes,
            is_batching=True,
            on_host_fault=lambda error: None,
        )
        made.append(engine)
        return engine, timeline

    yield make
    for engine in made:
        engine.stop()


@pytest.fixture
def booting(make_engine):
    """A booting engine of three models, the first of which does not get its weights yet."""
    locator = SlowLocator("flux-tiny")
    engine, timeline = make_engine(*MODELS, locator=locator)
    engine.start()
    yield engine, locator, timeline
    locator.release.set()


FLUX = {"model": "flux-tiny"}


def test_job_waits_for_its_own_model_only(booting):
    engine, locator, timeline = booting

    async def both():
        waiting = asyncio.create_task(engine.generate(make_request(**FLUX)))
        other = await asyncio.wait_for(engine.generate(make_request()), LONG_S)
        assert other.images
        assert not waiting.done()
        locator.release.set()
        return await asyncio.wait_for(waiting, LONG_S)

    generation = asyncio.run(both())
    moments = {span.subject: span.began_s for span in timeline.spans() if span.phase == "ready"}
    assert moments["sdxl-tiny"] < moments["flux-tiny"]
    assert generation.timings_ms["load"] > generation.timings_ms["queue"]


def test_job_that_waits_for_its_model_can_be_cancelled(booting):
    engine, locator, _ = booting

    async def cancel_one():
        task = asyncio.create_task(engine.generate(make_request(**FLUX)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, LONG_S)
        locator.release.set()
        return await asyncio.wait_for(engine.generate(make_request(**FLUX)), LONG_S)

    assert asyncio.run(cancel_one()).images, "the load that it waited for went on"


def test_deployment_fault_of_one_model_leaves_the_others_alone(booting):
    engine, locator, _ = booting
    locator.fault = ModelUnavailable("flux-tiny is not there")
    locator.release.set()
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="is not there"):
            asyncio.run(engine.generate(make_request(**FLUX)))
    assert asyncio.run(engine.generate(make_request())).images


def test_host_fault_is_tried_again_where_the_worker_stays(booting):
    """At a desk; on the platform the process ends."""
    engine, locator, _ = booting
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


def test_idle_worker_warms_up_each_size_of_each_model_alone_and_as_a_batch(make_engine):
    engine, timeline = make_engine(
        "sdxl-tiny", "sd15-tiny", sizes=[(64, 64), (64, 96), (4096, 4096)]
    )
    engine.start()
    assert not engine.is_warm
    wait_until(lambda: len(warmed(timeline)) == 8)
    wait_until(lambda: engine.is_warm)
    assert sorted(warmed(timeline)) == ["sd15-tiny"] * 4 + ["sdxl-tiny"] * 4


def test_boot_is_logged_when_all_is_loaded_and_with_the_first_image(make_engine, caplog):
    engine, _ = make_engine("sdxl-tiny", "sd15-tiny")
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


class HoldFirstCall:
    """A loader whose models wait in their first denoiser call until a test lets them go on."""

    def __init__(self, loader):
        self._loader = loader
        self.is_there = threading.Event()
        self.may_go_on = threading.Event()

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def preload(self, names):
        return tuple(self._hooked(load) for load in self._loader.preload(names))

    def _hooked(self, load):
        """A future that is done once the hook is in place, before the engine sees the model."""
        hooked: Future[RunnableModel] = Future()

        def add_hook(load):
            load.result().loaded.denoiser.register_forward_pre_hook(self._wait)
            hooked.set_result(load.result())

        load.add_done_callback(add_hook)
        return hooked

    def _wait(self, module, arguments):
        self.is_there.set()
        assert self.may_go_on.wait(LONG_S)


def test_warm_up_gives_way_to_a_job_and_is_made_up_for(make_engine):
    """The first warm-up is stopped in the middle, however fast the machine is."""
    held = []

    def hold(loader):
        held.append(HoldFirstCall(loader))
        return held[-1]

    engine, timeline = make_engine("sdxl-tiny", sizes=[(64, 64)], wrap=hold)
    (loader,) = held
    engine.start()
    assert loader.is_there.wait(LONG_S)

    async def job():
        task = asyncio.create_task(engine.generate(make_request()))
        await asyncio.sleep(0.05)
        loader.may_go_on.set()
        return await asyncio.wait_for(task, LONG_S)

    generation = asyncio.run(job())
    assert generation.images
    assert not engine.is_warm
    wait_until(lambda: engine.is_warm)
    interrupted, whole, _ = (span for span in timeline.spans() if span.phase == "warm")
    (first_image,) = (span for span in timeline.spans() if span.phase == "first_image")
    assert interrupted.ended_s < first_image.began_s < whole.ended_s
