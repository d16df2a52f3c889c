"""When a worker is to be renewed: by its images, by its memory, by an error."""

import pytest

from pixpod.serving.refresh import GIB, SETTLING_IMAGES, Renewal, resident_bytes


class Gauge:
    def __init__(self, used_gib=10.0):
        self.used_gib = used_gib

    def __call__(self):
        return None if self.used_gib is None else int(self.used_gib * GIB)


@pytest.fixture
def gauge():
    return Gauge()


@pytest.fixture
def settled(gauge):
    """A worker that has served enough for its memory to be known."""
    renewal = Renewal(after_images=0, gauges={"host": gauge})
    renewal.served("sdxl", 1)
    renewal.served("sdxl", SETTLING_IMAGES)
    return renewal


def test_it_is_due_after_so_many_images():
    renewal = Renewal(after_images=5, gauges={})
    renewal.served("sdxl", 4)
    assert renewal.reason is None
    renewal.served("sdxl", 2)
    assert renewal.reason == "6 images were served"
    assert not renewal.is_urgent


def test_zero_images_mean_never():
    renewal = Renewal(after_images=0, gauges={})
    renewal.served("sdxl", 1_000_000)
    assert renewal.reason is None


def test_error_that_leaves_the_worker_in_doubt_is_urgent():
    renewal = Renewal(after_images=0, gauges={})
    renewal.failed("out_of_memory")
    assert (renewal.reason, renewal.is_urgent) == ("out_of_memory", True)


def test_first_reason_is_kept():
    renewal = Renewal(after_images=1, gauges={})
    renewal.served("sdxl", 1)
    renewal.failed("out_of_memory")
    assert (renewal.reason, renewal.is_urgent) == ("1 images were served", True)


def test_memory_that_grows_while_it_settles_is_what_the_worker_needs(gauge):
    renewal = Renewal(after_images=0, gauges={"host": gauge})
    for _ in range(SETTLING_IMAGES):
        gauge.used_gib *= 1.3
        renewal.served("sdxl", 1)
    assert renewal.reason is None


@pytest.mark.parametrize(
    ("used_gib", "reason"),
    [(14.4, None), (14.6, "host memory has grown from 10.0 to 14.6 GiB"), (5.0, None)],
)
def test_memory_that_grows_later_is_a_reason(settled, gauge, used_gib, reason):
    gauge.used_gib = used_gib
    settled.served("sdxl", 1)
    assert settled.reason == reason


def test_model_that_is_drawn_for_the_first_time_may_take_memory(settled, gauge):
    gauge.used_gib = 40.0
    settled.served("flux-dev", 1)
    settled.served("flux-dev", SETTLING_IMAGES)
    assert settled.reason is None
    gauge.used_gib = 60.0
    settled.served("sdxl", 1)
    assert settled.reason == "host memory has grown from 40.0 to 60.0 GiB"


def test_memory_that_cannot_be_known_is_no_reason(settled, gauge):
    gauge.used_gib = None
    settled.served("sdxl", 1)
    assert settled.reason is None


def test_resident_memory_counts_what_is_touched():
    before = resident_bytes() or 0
    held = bytearray(b"x") * (64 * 2**20)
    grown = (resident_bytes() or 0) - before
    assert 32 * 2**20 < grown < 256 * 2**20
    assert held
