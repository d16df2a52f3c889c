"""When a worker requests a refresh: after a number of images, and after an error."""

from pixpod.serving.refresh import Refresh


def test_refresh_is_due_after_a_number_of_images():
    refresh = Refresh(after_images=5)
    refresh.served(4)
    assert refresh.reason is None
    refresh.served(2)
    assert refresh.reason == "6 images were served"
    assert not refresh.is_urgent


def test_refresh_is_due_with_the_last_image_of_the_number():
    refresh = Refresh(after_images=5)
    refresh.served(5)
    assert refresh.reason == "5 images were served"


def test_zero_images_mean_never():
    refresh = Refresh(after_images=0)
    refresh.served(1_000_000)
    assert refresh.reason is None


def test_error_that_leaves_the_worker_in_doubt_is_urgent():
    refresh = Refresh(after_images=0)
    refresh.failed("out_of_memory")
    assert (refresh.reason, refresh.is_urgent) == ("out_of_memory", True)


def test_first_reason_is_kept():
    refresh = Refresh(after_images=1)
    refresh.served(1)
    refresh.failed("out_of_memory")
    assert (refresh.reason, refresh.is_urgent) == ("1 images were served", True)
