"""The fake engine and the real one keep the same promises."""

import asyncio
import weakref
from typing import Any

import pytest
from support.factories import make_request, make_settings

from pixpod.bootstrap import build_engine
from pixpod.engine.base import Engine
from pixpod.engine.fake import FakeEngine


def build_real() -> Engine:
    return build_engine(make_settings(PIXPOD_DEVICE="cpu"))


@pytest.fixture(scope="module", params=[FakeEngine, build_real])
def engine(request):
    built = request.param()
    built.start()
    yield built
    built.stop()


def generate(engine: Engine, **changes):
    return asyncio.run(engine.generate(make_request(**changes)))


def test_one_image_per_seed_of_the_size_that_was_asked(engine):
    images = generate(engine, seeds=(1, 2, 3), width=96, height=64).images
    assert [(image.width, image.height) for image in images] == [(96, 64)] * 3
    assert {len(image.pixels) for image in images} == {96 * 64 * 3}


def test_a_seed_is_its_picture_and_another_is_not(engine):
    first, second = generate(engine, seeds=(1, 2)).images
    assert generate(engine, seeds=(1, 2)).images == (first, second)
    assert first != second


def test_timings_have_the_phases_of_an_engine(engine):
    assert generate(engine).timings_ms.keys() == {
        "load",
        "queue",
        "swap",
        "text_encode",
        "denoise",
        "decode",
    }


def test_steps_are_told_from_the_first_to_the_last(engine):
    told: list[tuple[int, int]] = []
    request = make_request(num_inference_steps=3)
    asyncio.run(engine.generate(request, lambda *step: told.append(step)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_own_part_of_the_devices_time_is_told(engine):
    assert generate(engine).device_ms > 0


def test_name_of_the_model_that_ran_is_told(engine):
    assert generate(engine).model.name == make_request().model
    assert engine.device_name == "cpu"


def test_cancelling_the_await_ends_it(engine):
    async def cancel_at_once() -> None:
        task = asyncio.create_task(engine.generate(make_request(num_inference_steps=50)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_at_once())
    assert generate(engine).images


def test_serves_several_event_loops_one_after_another(engine):
    assert generate(engine).images == generate(engine).images


def test_stopped_engine_keeps_no_model():
    stopped: Any = build_real()
    generate(stopped)
    module = weakref.ref(stopped._loader.load(make_request().model).result().components["vae"])
    assert module() is not None
    stopped.stop()
    assert module() is None
