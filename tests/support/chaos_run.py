"""Jobs through the emulator while `chaos` strikes: what they ask for, and what is found afterwards.

The worker is the product's with the real SDK; its engine makes images that depend on the seed.
"""

import random
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.chaos import Action, Chaos, Extent
from support.faulty_proxy import FaultyProxy, running_proxy
from support.platform import call, submit
from support.s3_server import S3Server
from support.webhook_receiver import WebhookReceiver, running_receiver
from support.webhooks import SECRET

from pixpod.serving.job_results import ANSWERED_FROM_STORED
from pixpod_client import Event
from runpod_emulator.testing import QUICK, RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[2]
HANDLER = Path(__file__).with_name("handlers") / "fake_engine.py"
CALLS = "calls"
NUM_WORKERS = 2
SIDE_PX = 64
VALID_SHARE = 0.9
PATIENT = replace(QUICK, heartbeat_timeout_s=6.0, max_retries=5, queue_limit=False)
"""Behaviour of a platform that gives up no job for the workers that it has lost."""


@dataclass(frozen=True)
class Order:
    """A job as it is submitted. An invalid one is refused."""

    input: dict[str, Any]
    is_valid: bool

    @property
    def seeds(self) -> list[int]:
        """Those of the images that it must get."""
        count = self.input["num_images"] if self.is_valid else 0
        return [self.input["seed"] + index for index in range(count)]


def make_orders(count: int) -> list[Order]:
    chance = random.Random(count)
    orders = []
    for number in range(count):
        is_valid = chance.random() < VALID_SHARE
        given = {
            "model": "sd15-tiny",
            "prompt": f"scene {number}",
            # one step has no progress to post: all faults of posts are of results
            "num_inference_steps": 1,
            "num_images": chance.choice((1, 1, 2, 3)),
            "seed": 10 * number,
            "width": SIDE_PX if is_valid else SIDE_PX + 1,
        }
        orders.append(Order(given, is_valid))
    return orders


@dataclass(frozen=True)
class Ended:
    """A job after the run.

    `history` are its states, `keys` those of its folder in the bucket, `files` what the links of
    its reply return.
    """

    id: str
    order: Order
    history: list[str]
    num_executions: int
    body: dict[str, Any]
    events: list[Event]
    keys: list[str]
    files: list[bytes]

    @property
    def images(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body.get("output", {}).get("images", [])
        return found

    @property
    def warnings(self) -> list[str]:
        found: list[str] = self.body.get("output", {}).get("warnings", [])
        return found

    @property
    def is_stored(self) -> bool:
        return ANSWERED_FROM_STORED in self.warnings


@dataclass(frozen=True)
class Run:
    """`arrived` are the jobs with an event before the dead letters were sent again."""

    jobs: list[Ended]
    chaos: Chaos
    num_result_faults: dict[str, int]
    num_calls: int
    arrived: set[str]
    num_letters: int
    redelivery: "subprocess.CompletedProcess[str]"
    num_refused_events: int


def run_jobs(extent: Extent, server: S3Server, folder: Path, more: Mapping[str, str]) -> Run:
    """Run jobs until all have ended, `more` in the environment of the workers."""
    orders = make_orders(extent.num_jobs)
    with (
        running_receiver(SECRET) as receiver,
        running_proxy(receiver.url) as way,
        running_proxy(server.endpoint_url) as bucket,
        running_platform(folder, {**environ(server, bucket, way), **more}) as platform,
    ):
        chaos = Chaos(platform=platform, bucket=bucket, receiver=way, extent=extent)
        url = f"{way.url}/events"
        given = [{"input": {**order.input, "webhook_url": url}} for order in orders]
        ids = [submit(platform, each) for each in given]
        chaos.run()
        num_result_faults = chaos.num_result_faults()
        chaos.end_faults()
        arrived = {event.data["job_id"] for event in receiver.events}
        num_letters = sum(key.endswith(".dead-letter") for key in server.all_keys())
        redelivery = redeliver(environ(server, bucket, way))
        jobs = read_jobs(platform, dict(zip(ids, orders, strict=True)), server, receiver)
    return Run(
        jobs=jobs,
        chaos=chaos,
        num_result_faults=num_result_faults,
        num_calls=len((folder / CALLS).read_text().splitlines()),
        arrived=arrived,
        num_letters=num_letters,
        redelivery=redelivery,
        num_refused_events=receiver.num_refused,
    )


def redeliver(env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pixpod_tools.redeliver.cli"],
        env={"PYTHONPATH": str(ROOT / "src"), **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


def environ(server: S3Server, bucket: FaultyProxy, receiver: FaultyProxy) -> dict[str, str]:
    return {
        **server.environ(),
        "PIXPOD_S3_ENDPOINT_URL": bucket.url,
        "PIXPOD_MODELS": "sd15-tiny",
        "PIXPOD_DEVICE": "cpu",
        "PIXPOD_MAX_CONCURRENCY": "8",
        "PIXPOD_WEBHOOK_SECRETS": SECRET,
        "PIXPOD_ALLOW_TARGETS": f"webhook:{receiver.url.removeprefix('http://')}",
    }


@contextmanager
def running_platform(folder: Path, env: dict[str, str]) -> Iterator[RunningEmulator]:
    settings = settings_for(
        HANDLER,
        folder,
        behaviour=PATIENT,
        rate_limits=False,
        workers_min=NUM_WORKERS,
        workers_max=NUM_WORKERS,
        env={**env, "FAKE_ENGINE_S": "0.2", "COUNT_FILE": str(folder / CALLS)},
    )
    with running_emulator(settings) as platform:
        yield platform


def read_jobs(
    platform: RunningEmulator,
    orders: dict[str, Order],
    server: S3Server,
    receiver: WebhookReceiver,
) -> list[Ended]:
    keys = server.all_keys()

    def read(job_id: str) -> Ended:
        details, body = platform.job(job_id), call(platform, f"/status/{job_id}")
        images = body.get("output", {}).get("images", [])
        return Ended(
            id=job_id,
            order=orders[job_id],
            history=[event["status"] for event in details["history"]],
            num_executions=details["executions"],
            body=body,
            events=[event for event in receiver.events if event.data["job_id"] == job_id],
            keys=[key for key in keys if key.partition("/")[0] == job_id],
            files=[fetch(image["url"]) for image in images],
        )

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(read, orders))


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read()
        return body


def table(run: Run) -> str:
    """Faults by kind, and outcomes."""
    chaos, jobs = run.chaos, run.jobs
    num_with_event = sum(bool(job.events) for job in jobs)
    statuses = Counter(job.body["status"] for job in jobs)
    lines = [
        *((each, chaos.num_done[each]) for each in (Action.KILL, Action.TERMINATE)),
        *((f"{each}, {chaos.outages_s[each]:.0f} s in all", chaos.num_done[each]) for each in OUTS),
        *((f"request to the bucket: {fault}", n) for fault, n in faults_of(chaos.bucket)),
        *((f"request to the receiver: {fault}", n) for fault, n in faults_of(chaos.receiver)),
        *((f"post of a result: {name}", n) for name, n in run.num_result_faults.items()),
        *((f"jobs {status}", n) for status, n in sorted(statuses.items())),
        ("executions", sum(job.num_executions for job in jobs)),
        ("denoiser calls", run.num_calls),
        ("jobs answered from a stored result", sum(job.is_stored for job in jobs)),
        ("images", sum(len(job.files) for job in jobs)),
        ("jobs whose final webhook arrived", len(run.arrived)),
        ("dead letters", run.num_letters),
        ("jobs whose final webhook arrived, once they were sent again", num_with_event),
        ("webhooks that arrived again", sum(len(job.events) for job in jobs) - num_with_event),
    ]
    return "\n" + "\n".join(f"{name:86} {count:>5}" for name, count in lines)


OUTS = (Action.BUCKET_OUTAGE, Action.RECEIVER_OUTAGE)


def faults_of(proxy: FaultyProxy) -> list[tuple[str, int]]:
    return sorted(Counter(str(each.fault) for each in proxy.seen if each.fault).items())
