"""A job's images in a real bucket, and what its caller is told when the bucket refuses them."""

import urllib.request

import pytest
from support.faulty_proxy import Fault
from support.s3_server import S3Server
from support.tiny_models import Desk, build_tiny_worker

pytest_plugins = ["integration.s3_servers"]

JOB = {"model": "sd15-tiny", "prompt": "a red circle on a blue background", "seed": 1}


def environ_of(server: S3Server, **changes: str) -> dict[str, str]:
    return {
        "PIXPOD_DELIVERY": "s3",
        "PIXPOD_S3_BUCKET": server.bucket,
        "PIXPOD_S3_ENDPOINT_URL": server.endpoint_url,
        "PIXPOD_S3_ACCESS_KEY_ID": server.access_key_id,
        "PIXPOD_S3_SECRET_ACCESS_KEY": server.secret_access_key,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        **changes,
    }


@pytest.fixture
def open_desk(tmp_path):
    """A function that opens a desk with these settings; all are closed at the end."""
    workers = []

    def open_one(**environ: str) -> Desk:
        workers.append(build_tiny_worker(tmp_path, **environ))
        workers[-1].start()
        return Desk(workers[-1])

    yield open_one
    for worker in workers:
        worker.stop()


def test_images_are_fetched_by_their_links(open_desk, juicefs):
    desk = open_desk(**environ_of(juicefs, PIXPOD_S3_PREFIX="shop/red"))
    output = {"format": "jpeg", "key_prefix": "orders"}
    images = desk.reply("job/1 ä", **JOB, num_images=2, output=output)["images"]
    for image in images:
        assert image["key"].startswith("shop/red/orders/job_1")
        with urllib.request.urlopen(image["url"]) as response:
            assert len(response.read()) == image["size_bytes"]
            assert response.headers["Content-Type"] == image["content_type"] == "image/jpeg"
    assert images[0]["key"] != images[1]["key"]


def test_wrong_secret_is_the_deployments_fault(open_desk, moto):
    environ = environ_of(moto, PIXPOD_S3_SECRET_ACCESS_KEY="tamarind")
    error = open_desk(**environ, PIXPOD_DELIVERY_FALLBACK="none").reply(**JOB)["error"]
    assert error.startswith("storage_denied: bucket 'images'")
    assert "SignatureDoesNotMatch" in error
    assert "tamarind" not in error


def test_missing_bucket_is_the_deployments_fault(open_desk, moto):
    environ = environ_of(moto, PIXPOD_S3_BUCKET="nowhere", PIXPOD_DELIVERY_FALLBACK="none")
    reply = open_desk(**environ).reply(**JOB)
    assert reply["error"].startswith("storage_denied: bucket 'nowhere'")
    assert "refresh_worker" not in reply


def test_images_are_in_the_reply_and_the_fault_in_the_log(open_desk, moto, caplog):
    reply = open_desk(**environ_of(moto, PIXPOD_S3_BUCKET="nowhere")).reply(**JOB)
    assert reply["images"][0]["data"]
    assert reply["warnings"] == [
        "the deployment's bucket: storage_denied, so 1 of 1 images are in the reply"
    ]
    (line,) = (each for each in caplog.records if each.message == "images not delivered")
    assert "NoSuchBucket" in line.error and "PIXPOD_S3_BUCKET" in line.error


def test_passing_500_is_not_noticed(open_desk, moto, proxy):
    desk = open_desk(**environ_of(moto, PIXPOD_S3_ENDPOINT_URL=proxy.url))
    proxy.faulty_method = "PUT"
    proxy.faults.append(Fault.INTERNAL_ERROR)
    image = desk.reply("passing", **JOB)["images"][0]
    tries = [each for each in proxy.seen if each.method == "PUT" and image["key"] in each.path]
    assert len(tries) == 2
    assert len(moto.get(image["key"])["Body"]) == image["size_bytes"]


def test_short_outage_is_waited_for(open_desk, moto, proxy):
    desk = open_desk(**environ_of(moto, PIXPOD_S3_ENDPOINT_URL=proxy.url))
    proxy.faulty_method = "PUT"
    proxy.faults += [Fault.DROP] * 3
    reply = desk.reply("outage", **JOB)
    assert reply["images"][0]["url"]
    assert (reply["warnings"], proxy.faults) == ([], [])


def test_look_up_that_fails_goes_unnoticed(open_desk, moto, proxy):
    desk = open_desk(**environ_of(moto, PIXPOD_S3_ENDPOINT_URL=proxy.url))
    proxy.faulty_method = "GET"
    proxy.faults += [Fault.INTERNAL_ERROR]
    assert desk.reply("no look-up", **JOB)["images"]
    assert proxy.faults == []
