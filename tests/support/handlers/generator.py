"""Yields the `items` of its input, each after `pause_s`; the item "raise" is an exception.

`AGGREGATE` in its environment makes it an async generator whose items are returned as well,
`REFRESH_WORKER` has the worker replaced after each job.
"""

import os
import time

import runpod

IS_AGGREGATE = "AGGREGATE" in os.environ


def handler(job):
    for item in job["input"]["items"]:
        time.sleep(job["input"].get("pause_s", 0))
        if item == "raise":
            raise ValueError("broken")
        yield item


async def async_handler(job):
    for item in handler(job):
        yield item


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": async_handler if IS_AGGREGATE else handler,
            "return_aggregate_stream": IS_AGGREGATE,
            "refresh_worker": "REFRESH_WORKER" in os.environ,
        }
    )
