"""A worker for the real SDK whose handler answers at once, BENCH_CONCURRENCY jobs at a time."""

import os
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    return {"number": job["input"]["number"]}


def main() -> None:
    concurrency = int(os.environ.get("BENCH_CONCURRENCY", "1"))
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda _current: concurrency}
    )


if __name__ == "__main__":
    main()
