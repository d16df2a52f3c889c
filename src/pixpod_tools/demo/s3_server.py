"""A local S3 server with one bucket, for the demo: moto, which accepts any credentials."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boto3.session import Session
from moto.server import ThreadedMotoServer

BUCKET = "images"
KEY = "demo"


@contextmanager
def running_s3() -> Iterator[dict[str, str]]:
    """Yield the settings of a worker that stores images there."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # otherwise one line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint_url = f"http://{host}:{port}"
        client: Any = Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
        )
        client.create_bucket(Bucket=BUCKET)
        yield {
            "PIXPOD_S3_BUCKET": BUCKET,
            "PIXPOD_S3_ENDPOINT_URL": endpoint_url,
            "PIXPOD_S3_ACCESS_KEY_ID": KEY,
            "PIXPOD_S3_SECRET_ACCESS_KEY": KEY,
            "PIXPOD_S3_ADDRESSING_STYLE": "path",
            "PIXPOD_S3_PREFIX": "demo",
        }
    finally:
        server.stop()
