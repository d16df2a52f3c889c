"""Decodes latents to pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.oom_fallbacks import Fallback
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.model import Component
from pixpod.errors import NumericalFault, WorkerError
from pixpod.job import RawImage


class DecodeStage:
    """Gives each row its image."""

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        pipe, size = context.pipe, batch.method.size

        def attempt(rows: Sequence[Row]) -> None:
            latents = torch.cat([row.latents for row in rows if row.latents is not None])
            pixels = batch.calls.decode(pipe, latents, size)
            images = _to_images(pixels, batch.model.spec.name)
            for row, image in zip(rows, images, strict=True):
                row.image = image

        subject = f"decoding an image of {size[0]}x{size[1]}"
        with _tiled_decoding(pipe.vae) as tiled:
            context.run_within_memory(batch, subject, batch.buckets(), attempt, tiled)


@contextmanager
def _tiled_decoding(vae: Component) -> Iterator[Fallback]:
    """Allow decoding images one by one, and large ones in tiles, until the block ends."""

    def enable() -> bool:
        vae.enable_slicing()
        vae.enable_tiling()
        return True

    try:
        yield Fallback(
            apply=enable,
            warning="the device's memory was short: large images were decoded in tiles",
        )
    finally:
        vae.disable_slicing()
        vae.disable_tiling()


def _to_images(pixels: torch.Tensor, model_name: str) -> list[RawImage | WorkerError]:
    """Convert (rows, 3, height, width) of 0 to 1 to 8-bit RGB; a row with NaN fails alone."""
    is_finite = torch.isfinite(pixels).flatten(1).all(dim=1).tolist()
    levels = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
    height, width = levels.shape[1:3]
    return [
        RawImage(width=width, height=height, pixels=row.numpy().tobytes())
        if is_good
        else NumericalFault(f"{model_name} produced NaN or infinite pixels")
        for row, is_good in zip(levels, is_finite, strict=True)
    ]
