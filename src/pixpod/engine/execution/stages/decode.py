"""Decodes latents to pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.conditions import Condition
from pixpod.engine.execution.oom_fallbacks import Fallback
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.model import Component
from pixpod.errors import NumericalFault
from pixpod.job import RawImage


class DecodeStage:
    """Gives each row its image."""

    def __init__(self, conditions: Sequence[Condition] = ()) -> None:
        self._conditions = conditions

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        pipe, size = context.pipe, batch.method.size

        def attempt(rows: Sequence[Row]) -> None:
            latents = torch.cat([row.latents for row in rows if row.latents is not None])
            pixels = batch.calls.decode(pipe, latents, size)
            levels, is_finite = _to_levels(pixels)
            for row, image, is_good in zip(rows, levels, is_finite, strict=True):
                row.image = self._finish(batch, row, image) if is_good else _fault(batch)

        subject = f"decoding an image of {size[0]}x{size[1]}"
        with _tiled_decoding(pipe.vae) as tiled:
            context.run_within_memory(batch, subject, batch.buckets(), attempt, tiled)

    def _finish(self, batch: Batch, row: Row, image: torch.Tensor) -> RawImage:
        for condition in self._conditions:
            image = condition.finish(row.state.item.request, image)
        width, height = batch.method.size
        pixels = image.cpu().contiguous().numpy().tobytes()
        return RawImage(width=width, height=height, pixels=pixels)


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


def _to_levels(pixels: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """Convert (rows, 3, height, width) of 0 to 1 to (rows, height, width, 3) in 8 bits.

    Also return which rows have neither NaN nor infinite values.
    """
    is_finite: list[bool] = torch.isfinite(pixels).flatten(1).all(dim=1).tolist()
    return (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1), is_finite


def _fault(batch: Batch) -> NumericalFault:
    return NumericalFault(f"{batch.model.spec.name} produced NaN or infinite pixels")
