"""The fake engine and the real one keep the same promises."""

import asyncio
import gc

import pytest
from diffusers import AutoencoderKL
from support.factories import make_request, make_settings

from pixpod.bootstrap import build_engine
from pixpod.engine.base import Engine
from pixpod.testing.fake_engine import FakeEngine


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


def test_one_image_per_seed_of_the_requested_size(engine):
    images = generate(engine, seeds=(1, 2, 3), width=96, height=64).images
    assert [(image.pixels.width, image.pixels.height) for image in images] == [(96, 64)] * 3
    assert {len(image.pixels.pixels) for image in images} == {96 * 64 * 3}


def test_a_seed_gives_its_image_and_another_seed_another_one(engine):
    first, second = generate(engine, seeds=(1, 2)).images
    assert (first.seed, second.seed) == (1, 2)
    assert generate(engine, seeds=(1, 2)).images == (first, second)
    assert first.pixels != second.pixels


def test_timings_have_the_phases_of_an_engine(engine):
    """Each that ran: nothing is offloaded here."""
    timings_ms = generate(engine, prompt="a prompt that no other test has").timings_ms
    assert timings_ms.keys() == {"load", "queue", "text_encode", "denoise", "decode"}


def test_calls_are_reported_from_the_first_to_the_last(engine):
    reported: list[tuple[int, int]] = []
    request = make_request(num_inference_steps=3)
    generation = asyncio.run(engine.generate(request, lambda *step: reported.append(step)))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    assert generation.num_calls == 3


def test_share_of_the_devices_time_is_reported(engine):
    assert generate(engine).device_ms > 0


def test_name_of_the_model_that_ran_is_reported(engine):
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


def num_vaes():
    gc.collect()
    return sum(type(each) is AutoencoderKL for each in gc.get_objects())


def test_stopped_engine_keeps_no_model():
    before = num_vaes()
    stopped = build_real()
    generate(stopped)
    assert num_vaes() == before + 1
    stopped.stop()
    assert num_vaes() == before
