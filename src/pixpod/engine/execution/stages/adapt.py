"""Puts LoRAs in place."""

from collections.abc import Sequence

from pixpod.engine.execution.batch import Batch, Row
from pixpod.engine.execution.stages.base import StageContext
from pixpod.methods import StageName


class AdaptStage:
    """Makes the denoiser ready for the rows that it runs first.

    The denoising does so itself for further rows; this stage shows in a reply what it takes.
    """

    def prepare(self, batch: Batch) -> bool:
        return bool(batch.rows)

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(rows: Sequence[Row]) -> None:
            requests = [row.state.item.request for row in rows]
            context.put_in_place(batch, StageName.DENOISE, requests)

        context.run_within_memory(batch, "LoRAs", batch.buckets()[:1], attempt)
