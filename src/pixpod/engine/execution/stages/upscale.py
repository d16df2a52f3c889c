"""Makes finished images larger."""

from collections.abc import Sequence

import torch

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.conditions.base import to_levels
from pixpod.engine.execution.oom_fallbacks import Fallback
from pixpod.engine.execution.stages.base import StageContext
from pixpod.engine.execution.tiling import Span, spans
from pixpod.engine.model import Component
from pixpod.errors import NumericalFault
from pixpod.job import RawImage

TILE_PX, SMALL_TILE_PX = 256, 128


class UpscaleStage:
    """Replaces each row's image. Rows come one by one, and large images in tiles."""

    def __init__(self, tile_px: int = TILE_PX) -> None:
        self._tile_px = tile_px

    def prepare(self, batch: Batch) -> bool:
        return bool(_images(batch))

    def run(self, batch: Batch, context: StageContext) -> None:
        assert batch.request.upscaler is not None, "the plan of others has no such stage"
        upscaler = batch.model.extras[batch.request.upscaler.name].module
        tile_px = self._tile_px

        def use_small_tiles() -> bool:
            nonlocal tile_px
            tile_px = min(tile_px, SMALL_TILE_PX)
            return True

        def attempt(rows: Sequence[Row]) -> None:
            for row in rows:
                assert isinstance(row.image, RawImage)
                row.image = _upscale(batch, upscaler, row.image, tile_px)

        width, height = batch.method.size
        chunks = [[row] for row in _images(batch)]
        small = Fallback(apply=use_small_tiles)
        context.run_within_memory(
            batch, f"upscaling an image of {width}x{height}", chunks, attempt, small
        )


def _images(batch: Batch) -> list[Row]:
    return [row for row in batch.rows if isinstance(row.image, RawImage)]


def _upscale(
    batch: Batch, upscaler: Component, image: RawImage, tile_px: int
) -> RawImage | NumericalFault:
    scale, window_px = upscaler.config.upscale, upscaler.config.window_size
    levels = to_levels(image)
    width, height = scale * image.width, scale * image.height
    result = torch.empty((height, width, 3), dtype=torch.uint8)
    num_done = batch.num_calls // len(batch.rows)
    for rows in spans(image.height, tile_px, window_px):
        for columns in spans(image.width, tile_px, window_px):
            batch.on_step(num_done)  # a large image takes as long as many steps
            seen = levels[rows.begin : rows.end, columns.begin : columns.end]
            made = _upscale_tile(upscaler, seen.to(batch.model.device))
            if made is None:
                return NumericalFault(f"{batch.method.upscaler} produced NaN or infinite pixels")
            kept = made[_kept(rows, scale), _kept(columns, scale)]
            result[
                scale * rows.kept_begin : scale * rows.kept_end,
                scale * columns.kept_begin : scale * columns.kept_end,
            ] = kept.cpu()
    return RawImage(width=width, height=height, pixels=result.numpy().tobytes())


def _upscale_tile(upscaler: Component, levels: torch.Tensor) -> torch.Tensor | None:
    """Return 8-bit levels of (height, width, 3), None if there are values that are no numbers."""
    pixels = levels.permute(2, 0, 1)[None].to(upscaler.dtype) / 255
    made: torch.Tensor = upscaler(pixel_values=pixels).reconstruction[0]
    if not torch.isfinite(made).all():
        return None
    return (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _kept(span: Span, scale: int) -> slice:
    return slice(scale * (span.kept_begin - span.begin), scale * (span.kept_end - span.begin))
