"""Requests are queued for a device that does what the test says."""

import threading
from collections.abc import Sequence

import pytest
from support.factories import make_request

from pixpod.engine.base import Cancelled
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.engine.scheduling.device_watch import DeviceWatch
from pixpod.engine.scheduling.request_queue import RequestQueue
from pixpod.errors import InvalidInput, OutOfMemory, Problem
from pixpod.job import ImageResult, ModelIdentity, RawImage

LONG_S = 10
IDENTITY = ModelIdentity(name="m", revision="r", precision="float32", weights="baked")


class Device:
    """A model on its device: images show their seeds, and batches can be kept waiting."""

    identity = IDENTITY

    def __init__(self, *, is_held: bool = False, limit: int = 8) -> None:
        self.limit = limit
        self.batches: list[tuple[BatchItem, ...]] = []
        self.fail_with: list[Exception] = []
        self.items_fail: dict[str, Exception] = {}
        self.begun = threading.Semaphore(0)
        self._go_on = threading.Event()
        if not is_held:
            self._go_on.set()

    def release(self) -> None:
        self._go_on.set()

    def num_calls(self, request) -> int:
        return request.sampling.num_inference_steps

    def max_batch_size(self, request) -> int:
        return self.limit

    def execute(self, items: Sequence[BatchItem], on_step):
        self.batches.append(tuple(items))
        self.begun.release()
        for step in range(self.num_calls(items[0].request)):
            assert self._go_on.wait(LONG_S)
            on_step(step + 1)
        if self.fail_with:
            raise self.fail_with.pop()
        return [self.items_fail.get(item.request.prompts.prompt) or result(item) for item in items]


def result(item: BatchItem) -> ItemResult:
    return ItemResult(
        images=tuple(
            ImageResult(pixels=RawImage(width=1, height=1, pixels=bytes([seed])), seed=seed)
            for seed in item.seeds
        ),
        timings_ms={"denoise": 1.0},
        device_ms=2.0,
        warnings=("careful",),
    )


class DeviceQueue(RequestQueue):
    """A queue all of whose requests are for one model."""

    def __init__(self, device: Device, *, watch=None, **options) -> None:
        super().__init__(watch=watch or DeviceWatch(lambda waited_s: None), **options)
        self.device = device


@pytest.fixture
def make_queue():
    queues = []

    def make(device, **options):
        queues.append(queue := DeviceQueue(device, **options))
        return queue

    yield make
    for queue in queues:
        queue.device.release()
        queue.stop()


def submit(queue, *, cancel=None, on_step=None, warms=None, **changes):
    return queue.submit(
        queue.device,
        make_request(**changes),
        cancel=cancel or threading.Event(),
        on_step=on_step,
        warms=warms,
    )


def seeds_of(generation):
    assert all(image.pixels.pixels == bytes([image.seed]) for image in generation.images)
    return [image.seed for image in generation.images]


def occupy(device, queue, **changes):
    """A request that keeps the device busy until it is released."""
    first = submit(queue, **changes)
    assert device.begun.acquire(timeout=LONG_S)
    return first


def test_request_gets_its_images(make_queue):
    generation = submit(make_queue(Device()), seeds=(1, 2)).result(LONG_S)
    assert seeds_of(generation) == [1, 2]
    assert generation.model == IDENTITY
    assert generation.timings_ms.keys() == {"queue", "denoise"}
    assert generation.device_ms == 2.0
    assert generation.num_calls == 2
    assert generation.warnings == ("careful",)


def test_those_that_wait_share_a_batch(make_queue):
    device = Device(is_held=True)
    queue = make_queue(device)
    first = occupy(device, queue, seeds=(1,))
    others = [submit(queue, seeds=(seed,)) for seed in (2, 3)]
    device.release()
    assert [seeds_of(each.result(LONG_S)) for each in (first, *others)] == [[1], [2], [3]]
    assert [len(batch) for batch in device.batches] == [1, 2]


def test_request_that_is_split_is_joined_in_its_order(make_queue):
    device = Device(limit=2)
    generation = submit(make_queue(device), seeds=(1, 2, 3, 4, 5)).result(LONG_S)
    assert seeds_of(generation) == [1, 2, 3, 4, 5]
    assert [item.seeds for (item,) in device.batches] == [(1, 2), (3, 4), (5,)]
    assert generation.device_ms == 6.0
    assert generation.timings_ms["denoise"] == 3.0
    assert generation.warnings == ("careful",), "reported once"


def test_progress_of_a_split_request_only_grows(make_queue):
    reported = []
    queue = make_queue(Device(limit=1))
    submit(queue, seeds=(1, 2), on_step=lambda *step: reported.append(step)).result(LONG_S)
    assert reported == [(0, 2), (1, 2), (1, 2), (2, 2)]


def test_other_kinds_alternate_with_a_long_request(make_queue):
    device = Device(is_held=True, limit=1)
    queue = make_queue(device)
    long = occupy(device, queue, seeds=(1, 2, 3, 4))
    short = submit(queue, width=128, seeds=(9,))
    device.release()
    short.result(LONG_S)
    long.result(LONG_S)
    widths = [batch[0].request.width for batch in device.batches]
    assert widths.index(128) == 1, "and not behind all four"


def test_cancelled_request_ends_at_its_next_step(make_queue):
    device, cancel = Device(is_held=True), threading.Event()
    queue = make_queue(device)
    first = occupy(device, queue, cancel=cancel)
    cancel.set()
    device.release()
    with pytest.raises(Cancelled):
        first.result(LONG_S)


def test_cancelled_while_waiting_is_never_executed(make_queue):
    device, cancel = Device(is_held=True), threading.Event()
    queue = make_queue(device)
    first = occupy(device, queue)
    second = submit(queue, cancel=cancel, width=128)
    cancel.set()
    device.release()
    with pytest.raises(Cancelled):
        second.result(LONG_S)
    first.result(LONG_S)
    assert len(device.batches) == 1


def test_cancelled_one_leaves_its_neighbours_alone(make_queue):
    device = Device(is_held=True)
    queue = make_queue(device)
    occupy(device, queue, width=128)
    cancel = threading.Event()
    goes = submit(queue, cancel=cancel, on_step=lambda step, steps: cancel.set())
    stays = submit(queue)
    device.release()
    with pytest.raises(Cancelled):
        goes.result(LONG_S)
    assert stays.result(LONG_S).images
    assert len(device.batches[1]) == 2


def test_item_that_fails_fails_alone(make_queue):
    device = Device(is_held=True)
    error = InvalidInput([Problem(field="prompt", value="x", accepted="less")])
    device.items_fail["too long"] = error
    queue = make_queue(device)
    occupy(device, queue, width=128)
    bad, good = submit(queue, prompt="too long"), submit(queue)
    device.release()
    assert bad.exception(LONG_S) is error
    assert good.result(LONG_S).images


@pytest.mark.parametrize("error", [OutOfMemory("full"), RuntimeError("a bug")], ids=["ours", "bug"])
def test_batch_that_fails_fails_for_all_and_the_next_is_executed(make_queue, error):
    device = Device(is_held=True)
    queue = make_queue(device)
    occupy(device, queue, width=128).add_done_callback(lambda first: device.fail_with.append(error))
    pair = [submit(queue), submit(queue)]
    device.release()
    assert [each.exception(LONG_S) for each in pair] == [error, error]
    assert submit(queue).result(LONG_S).images


def test_warm_up_waits_for_everybody_else(make_queue):
    device = Device(is_held=True)
    queue = make_queue(device)
    occupy(device, queue, seeds=(1,))
    warmup = submit(queue, width=128, warms="sdxl-tiny")
    late = submit(queue, width=192)
    assert not queue.is_warm
    device.release()
    warmup.result(LONG_S)
    assert late.done()
    assert queue.is_warm
    assert [batch[0].request.width for batch in device.batches] == [64, 192, 128]


def test_warm_up_gives_way_and_is_made_up_for(make_queue):
    device = Device(is_held=True)
    queue = make_queue(device)
    warmup = occupy(device, queue, width=128, warms="sdxl-tiny")
    job = submit(queue)
    device.release()
    assert job.result(LONG_S).images
    assert warmup.result(LONG_S).images
    assert [batch[0].request.width for batch in device.batches] == [128, 64, 128]
    assert device.batches[0][0].warms


def test_stop_cancels_what_waits_and_what_is_executed(make_queue):
    device = Device(is_held=True)
    queue = make_queue(device)
    running = occupy(device, queue)
    waits = submit(queue, width=128)
    stopping = threading.Thread(target=queue.stop)
    stopping.start()
    device.release()
    stopping.join(LONG_S)
    for each in (running, waits, submit(queue)):
        with pytest.raises(Cancelled):
            each.result(0)


def test_without_batching_each_image_has_a_batch_of_its_own(make_queue):
    device = Device()
    generation = submit(make_queue(device, is_batching=False), seeds=(1, 2)).result(LONG_S)
    assert seeds_of(generation) == [1, 2]
    assert [len(batch[0].seeds) for batch in device.batches] == [1, 1]


# --- a device that hangs -------------------------------------------------------------------


@pytest.fixture
def stuck():
    """Released for each report of a device that hangs."""
    return threading.Semaphore(0)


@pytest.fixture
def watched_queue(make_queue, stuck):
    """A queue of a device that hangs until it is released."""
    watch = DeviceWatch(lambda waited_s: stuck.release(), limit_s=0.05)
    return make_queue(Device(is_held=True), watch=watch)


def cancel(queue, *events):
    for event in events:
        event.set()
    queue.forget_cancelled()


def test_device_that_hangs_is_reported_once_nobody_waits(watched_queue, stuck):
    first, second = threading.Event(), threading.Event()
    occupy(watched_queue.device, watched_queue, cancel=first)
    submit(watched_queue, cancel=second)
    cancel(watched_queue, second)
    assert not stuck.acquire(timeout=0.15), "the first job still waits for it"
    cancel(watched_queue, first)
    assert stuck.acquire(timeout=LONG_S)


def test_device_that_ends_its_batch_is_not_reported(watched_queue, stuck):
    given_up = threading.Event()
    first = occupy(watched_queue.device, watched_queue, cancel=given_up)
    cancel(watched_queue, given_up)
    watched_queue.device.release()
    with pytest.raises(Cancelled):
        first.result(LONG_S)
    assert not stuck.acquire(timeout=0.15)


def test_warmup_may_take_any_time(watched_queue, stuck):
    given_up = threading.Event()
    occupy(watched_queue.device, watched_queue, warms="sdxl-tiny")
    submit(watched_queue, cancel=given_up)
    cancel(watched_queue, given_up)
    assert not stuck.acquire(timeout=0.15)
