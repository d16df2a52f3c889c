"""Ends the denoising with a refiner."""

import torch

from pixpod.engine.execution.batch import Row
from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.execution.stages.denoise import DenoiseStage
from pixpod.job import GenerationRequest
from pixpod.methods import StageName, refining


class RefineStage(DenoiseStage):
    """Goes on with the latents and the noise of each row, where the model has left them."""

    name = StageName.REFINE
    part = 1

    def request_of(self, request: GenerationRequest) -> GenerationRequest:
        return refining(request)

    def generator_of(self, row: Row) -> torch.Generator:
        assert row.generator is not None, "the row was denoised"
        return row.generator.clone_state()

    def arguments_of(self, row: Row) -> Arguments:
        # with latents, the pipeline adds no noise to the image, of which it needs the size only
        return {**super().arguments_of(row), "image": row.latents, "latents": row.latents}
