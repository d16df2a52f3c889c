"""Who shares a batch never changes an image: alone, among strangers, after cancels and faults."""

import asyncio
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from support.factories import CATALOG, make_settings

from pixpod.bootstrap import build_engine
from pixpod.errors import InvalidInput, OutOfMemory
from pixpod.job import Generation, GenerationRequest, ImageResult
from pixpod.methods import StageName

MODELS = ("flux-tiny", "sdxl-tiny", "sd15-tiny")
FLOAT32_BOUND, SIXTEEN_BIT_BOUND, LEAST_PSNR_DB = 1, 4, 40
"""Levels of 255 by which an image may differ from its own in a batch of another size."""

PROMPTS = (
    "a red circle on a blue background",
    "a green cross on a white background",
    "a small yellow square at the top on a black background",
    "a purple triangle on an orange background",
    "a large white circle on a green background",
    "a blue square on a yellow background",
    "an orange cross on the left on a purple background",
    "a black triangle on a red background",
)
STEPS = 2


def request_of(model: str, **changes) -> GenerationRequest:
    """The first prompt and seed, if nothing else is said."""
    given = {"prompt": PROMPTS[0], "num_inference_steps": STEPS, "seeds": (1,)}
    return CATALOG[model].default_request(**{**given, **changes})


def strangers(model: str, count: int, first: int = 1) -> list[GenerationRequest]:
    """They may share its batch, and have nothing else in common with it nor with each other."""
    numbers = range(first, first + count)
    return [request_of(model, prompt=PROMPTS[1 + n % 7], seeds=(100 + n,)) for n in numbers]


BLOCKER = request_of("sd15-tiny", width=32, height=32, num_inference_steps=1)


class Desk:
    """One engine for all tests of this file, in an event loop of its own each time."""

    def __init__(self) -> None:
        self.engine = build_engine(make_settings(PIXPOD_DEVICE="cpu"))
        self.engine.start()

    def generate(self, request: GenerationRequest) -> Generation:
        return asyncio.run(self.engine.generate(request))

    def generate_together(
        self, requests: list[GenerationRequest]
    ) -> list[Generation | BaseException]:
        """What became of each; they wait until all of them are there."""
        return asyncio.run(self._generate_together(requests))

    async def _generate_together(self, requests) -> list[Generation | BaseException]:
        async with self.busy():
            tasks = [asyncio.create_task(self.engine.generate(each)) for each in requests]
            await settle()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def busy(self) -> "Busy":
        return Busy(self)


class Busy:
    """Holds the device in the last step of another request; requests that come meanwhile wait."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._release = threading.Event()

    async def __aenter__(self) -> None:
        loop, holds = asyncio.get_running_loop(), asyncio.Event()

        def hold(step: int, steps: int) -> None:
            loop.call_soon_threadsafe(holds.set)
            assert self._release.wait(60)

        self._task = asyncio.create_task(self._desk.engine.generate(BLOCKER, hold))
        await holds.wait()

    async def __aexit__(self, *exc: object) -> None:
        self._release.set()
        await self._task


async def settle() -> None:
    """Let each task come as far as it can without the device."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    desk = Desk()
    for model in MODELS:
        desk.generate(request_of(model))  # nobody waits for a load later on
    yield desk
    desk.engine.stop()


@pytest.fixture(scope="module")
def alone(desk) -> dict[str, ImageResult]:
    """The first image of each model, with nobody beside it."""
    return {model: image_of(desk.generate(request_of(model))) for model in MODELS}


@pytest.fixture(scope="module")
def among_strangers(desk):
    """The first image of a model in a batch of so many, and theirs. Each is generated once."""

    def generate(model: str, bucket: int) -> list[Generation]:
        return desk.generate_together([request_of(model), *strangers(model, bucket - 1)])

    return functools.cache(generate)


def image_of(generated: Generation | BaseException) -> ImageResult:
    """The only image of a request that must have succeeded."""
    if isinstance(generated, BaseException):
        raise generated
    (image,) = generated.images
    return image


def assert_near(model: str, left: ImageResult, right: ImageResult) -> None:
    """Within what DESIGN allows between batches of different sizes."""
    one, other = (
        np.frombuffer(image.pixels.pixels, np.uint8).astype(int) for image in (left, right)
    )
    apart = np.abs(one - other)
    if model != "flux-tiny":
        assert apart.max() <= FLOAT32_BOUND
        return
    assert apart.max() <= SIXTEEN_BIT_BOUND
    if mean_square := np.mean(apart**2):
        assert 10 * np.log10(255**2 / mean_square) >= LEAST_PSNR_DB


def assert_one_batch(generated: list[Generation]) -> None:
    """They were denoised together: to a tenth of a millisecond it took them equally long."""
    assert len({each.timings_ms["denoise"] for each in generated}) == 1


class TestStrangers:
    @pytest.mark.parametrize("bucket", [2, 4, 8])
    @pytest.mark.parametrize("model", MODELS)
    def test_image_is_that_of_the_request_alone_within_bounds(
        self, among_strangers, alone, model, bucket
    ):
        generated = among_strangers(model, bucket)
        assert_one_batch(generated)
        assert_near(model, image_of(generated[0]), alone[model])
        assert len({image_of(each).pixels for each in generated}) == bucket

    @pytest.mark.parametrize("bucket", [2, 4, 8])
    @pytest.mark.parametrize("model", MODELS)
    def test_same_bytes_in_the_same_bucket_whoever_shares_it_and_wherever_it_is(
        self, desk, among_strangers, model, bucket
    ):
        others = [*strangers(model, bucket - 1, first=20), request_of(model)]
        generated = desk.generate_together(others)
        assert_one_batch(generated)
        assert image_of(generated[-1]) == image_of(among_strangers(model, bucket)[0])

    def test_job_of_several_images_is_split_over_batches_and_joined_in_order(self, desk):
        """Five rows: four in one batch, of them two of the job, then its last one alone."""
        model = "sdxl-tiny"
        job = request_of(model, seeds=(1, 2, 3))
        generated = desk.generate_together([*strangers(model, 2), job])[-1]
        assert isinstance(generated, Generation)
        for seed, image in zip(job.seeds, generated.images, strict=True):
            assert_near(model, image, image_of(desk.generate(request_of(model, seeds=(seed,)))))

    @pytest.mark.parametrize("model", MODELS)
    def test_isolated_request_gives_the_same_bytes_in_any_company(self, desk, alone, model):
        request = request_of(model, isolated=True)
        generated = desk.generate_together(
            [*strangers(model, 1), request, *strangers(model, 1, first=7)]
        )
        assert image_of(generated[1]) == alone[model]

    @pytest.mark.parametrize("model", MODELS)
    def test_shares_of_the_time_add_up_to_no_more_than_it_took(self, among_strangers, model):
        generated = among_strangers(model, 4)
        spent = generated[0].timings_ms
        batch_ms = sum(spent.get(phase, 0) for phase in ("onload", *StageName))
        assert sum(each.device_ms for each in generated) == pytest.approx(batch_ms, abs=0.5)

    def test_two_models_never_share_a_batch(self, desk, alone):
        requests = [request_of(model) for model in MODELS]
        for model, generated in zip(MODELS, desk.generate_together(requests), strict=True):
            assert generated.model.name == model
            assert image_of(generated) == alone[model]


class TestAfterwards:
    def test_image_is_the_same_after_other_models_and_batches_ran(self, desk, alone):
        for model in MODELS:
            desk.generate_together(strangers(model, 2, first=40))
        assert {model: image_of(desk.generate(request_of(model))) for model in MODELS} == alone

    @pytest.mark.parametrize("model", MODELS)
    def test_cancelled_neighbour_harms_nobody(self, desk, among_strangers, alone, model):
        requests = [request_of(model), *strangers(model, 3)]
        undisturbed = among_strangers(model, 4)
        generated = asyncio.run(cancel_in_a_batch(desk, requests, [2]))
        assert isinstance(generated[2], asyncio.CancelledError)
        for number in (0, 1, 3):
            assert image_of(generated[number]) == image_of(undisturbed[number])
        assert image_of(desk.generate(request_of(model))) == alone[model]

    def test_batch_that_nobody_waits_for_ends_and_leaves_no_trace(self, desk, alone):
        model = "sdxl-tiny"
        steps: list[int] = []
        requests = [request_of(model), *strangers(model, 1)]
        generated = asyncio.run(cancel_in_a_batch(desk, requests, [0, 1], steps))
        assert all(isinstance(each, asyncio.CancelledError) for each in generated)
        assert image_of(desk.generate(request_of(model))) == alone[model]
        assert steps == [1]


async def cancel_in_a_batch(
    desk: Desk,
    requests: list[GenerationRequest],
    cancelled: list[int],
    steps: list[int] | None = None,
) -> list[Generation | BaseException]:
    """All in one batch, some cancelled in its first step; `steps` collects those of the first."""
    loop, is_there, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def on_step(step: int, num_steps: int) -> None:
        if steps is not None:
            steps.append(step)
        loop.call_soon_threadsafe(is_there.set)
        assert go_on.wait(60)

    async with desk.busy():
        listeners = [on_step, *[None] * (len(requests) - 1)]
        tasks = [
            asyncio.create_task(desk.engine.generate(request, listener))
            for request, listener in zip(requests, listeners, strict=True)
        ]
        await settle()
    await is_there.wait()
    for number in cancelled:
        tasks[number].cancel()
    await settle()
    go_on.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


class TestFaults:
    LONG = " ".join(["circle"] * 200)

    @pytest.mark.parametrize("model", MODELS)
    def test_too_long_prompt_is_refused_alone(self, desk, alone, model):
        bad = request_of(model, prompt=self.LONG)
        generated = desk.generate_together([request_of(model), bad, *strangers(model, 2)])
        assert isinstance(generated[1], InvalidInput)
        assert_near(model, image_of(generated[0]), alone[model])
        assert len({image_of(generated[number]).pixels for number in (0, 2, 3)}) == 3

    TILED, HALVED = "large images were decoded in tiles", "the batch was halved"

    @pytest.mark.parametrize(
        ("model", "warnings"),
        [
            ("sd15-tiny", ()),
            ("sdxl-tiny", (TILED,)),
            ("sd15-tiny", (TILED, HALVED)),
            ("flux-tiny", (TILED,)),
        ],
    )
    def test_batch_that_did_not_fit_is_generated_in_the_end(
        self, desk, among_strangers, model, warnings
    ):
        """The first fallback costs nothing that a caller would have to know."""
        requests = [request_of(model), *strangers(model, 3)]
        with out_of_memory(times=1 + len(warnings)):
            generated = desk.generate_together(requests)
        for one, other in zip(generated, among_strangers(model, 4), strict=True):
            assert_near(model, image_of(one), image_of(other))
            for warning, part in zip(one.warnings, warnings, strict=True):
                assert part in warning
        again = desk.generate_together(requests)
        assert image_of(again[0]) == image_of(among_strangers(model, 4)[0])
        assert again[0].warnings == ()

    def test_what_never_fits_is_the_answer_to_all_and_the_next_request_is_served(self, desk, alone):
        requests = [request_of("sdxl-tiny"), *strangers("sdxl-tiny", 1)]
        with out_of_memory(times=100):
            generated = desk.generate_together(requests)
        assert all(isinstance(each, OutOfMemory) for each in generated)
        assert image_of(desk.generate(request_of("sdxl-tiny"))) == alone["sdxl-tiny"]


@contextmanager
def out_of_memory(*, times: int) -> Iterator[None]:
    """Decoding of images of the tests' own size fails so often, as it does on a full GPU."""
    decode, left = AutoencoderKL.decode, [None] * times

    def decode_or_fail(self, latents, *args, **kwargs):
        if left and latents.shape[-1] == SIZE_IN_LATENTS:
            left.pop()
            raise torch.OutOfMemoryError("injected")
        return decode(self, latents, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", decode_or_fail)
        yield


SIZE_IN_LATENTS = 64 // 8
"""The blocker's images are smaller."""
