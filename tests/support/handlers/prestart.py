"""A worker of SDK 2.0 whose prestart hook does what `HOOK` in its environment says."""

import asyncio
import os

import runpod

ready: list[str] = []


@runpod.serverless.register_prestart_hook
async def load():
    if os.environ["HOOK"] == "fails":
        # at once, the SDK would drop the answer to its first poll, and the job with it
        await asyncio.sleep(1)
        raise OSError("no weights found")
    await asyncio.sleep(float(os.environ["HOOK"]))
    ready.append("weights")


async def handler(job):
    return {"ready": ready, "sdk": runpod.__version__}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
