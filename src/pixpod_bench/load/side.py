"""Runs one checkout's worker in a process of its own, which answers orders on standard input.

This is a script, run by its path with that checkout's `src` as PYTHONPATH, so that it imports
nothing of the benchmarks. Orders and answers are lines of JSON.
"""

import asyncio
import base64
import io
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

Document = dict[str, Any]
"""Any: a JSON document."""


class Side:
    """Workers of this checkout with and without batching, and stock pipelines, made when needed."""

    def __init__(self, environ: dict[str, str], stack: AsyncExitStack) -> None:
        self._environ = environ
        self._stack = stack
        self._workers: dict[bool, Any] = {}
        self._pipelines: dict[str, Any] = {}

    async def overhead(self, job: Document, bare_first: bool) -> Document:
        """Run one job through the handler and through the bare pipeline, in either order."""
        await self._worker(is_batching=True)
        self._pipeline(job["model"])
        bare = self._bare(job) if bare_first else None
        handled = await self._handle(job, is_batching=True)
        return {**handled, **(bare or self._bare(job))}

    async def burst(self, jobs: list[Document], is_batching: bool) -> Document:
        """Submit all jobs at once and wait for all."""
        await self._worker(is_batching)
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._handle(job, is_batching) for job in jobs))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "images": [answer["image"] for answer in answers]}

    async def _handle(self, job: Document, is_batching: bool) -> Document:
        worker = await self._worker(is_batching)
        began = time.perf_counter()
        reply = await worker.handle({"id": f"job-{job['seed']}", "input": job})
        handler_ms = (time.perf_counter() - began) * 1e3
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return {
            "handler_ms": handler_ms,
            "phases_ms": reply["timings_ms"],
            "image": reply["images"][0]["data"],
        }

    def _bare(self, job: Document) -> Document:
        import torch

        given = {name: value for name, value in job.items() if name not in ("model", "seed")}
        generator = torch.Generator().manual_seed(job["seed"])
        began = time.perf_counter()
        image = self._pipeline(job["model"])(**given, generator=generator).images[0]
        bare_ms = (time.perf_counter() - began) * 1e3
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"bare_ms": bare_ms, "bare_image": base64.b64encode(file.getvalue()).decode()}

    async def _worker(self, is_batching: bool) -> Any:  # noqa: ANN401 - of either checkout
        if is_batching not in self._workers:
            from pixpod.bootstrap import build_worker
            from pixpod.settings import Settings

            environ = {**self._environ, "PIXPOD_BATCHING": str(is_batching).lower()}
            worker = build_worker(Settings.from_env(environ))
            self._workers[is_batching] = await self._stack.enter_async_context(worker)
            await self._warm_up(is_batching)
        return self._workers[is_batching]

    async def _warm_up(self, is_batching: bool) -> None:
        """Load every model, so that no thread imports anything during a measurement."""
        for model in self._environ["PIXPOD_MODELS"].split(","):
            job = {"model": model, "prompt": "warm up", "num_inference_steps": 1, "seed": 0}
            await self._handle(job, is_batching)

    def _pipeline(self, model: str) -> Any:  # noqa: ANN401 - diffusers has no types
        if model not in self._pipelines:
            import torch
            from diffusers import DiffusionPipeline

            folder = Path(self._environ["PIXPOD_WEIGHTS_DIR"]) / "tiny" / model
            pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
            pipeline.set_progress_bar_config(disable=True)
            self._pipelines[model] = pipeline
        return self._pipelines[model]


async def main(environ: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        side = Side(environ, stack)
        while line := sys.stdin.readline():
            order = json.loads(line)
            answer = await getattr(side, order.pop("order"))(**order)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
