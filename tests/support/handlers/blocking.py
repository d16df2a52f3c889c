"""A handler that blocks its worker's event loop for `seconds`, or until the file `until` exists."""

import os
import time
from pathlib import Path

import runpod

CONCURRENCY = int(os.environ.get("CONCURRENCY", "1"))


def handler(job):
    asked = job["input"]
    time.sleep(asked.get("seconds", 0))
    while "until" in asked and not Path(asked["until"]).exists():
        time.sleep(0.02)
    return {"ended_at": time.time()}


if __name__ == "__main__":
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda current: CONCURRENCY}
    )
