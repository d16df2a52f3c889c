"""FLUX.1 Kontext: the latents of the image to edit are further tokens of the transformer."""

from pixpod.engine.execution.pipelines.base import Arguments
from pixpod.engine.execution.pipelines.flux import FluxCalls
from pixpod.job import GenerationRequest


class FluxKontextCalls(FluxCalls):
    """Calls Kontext at the requested size; its pipeline would choose one of a list."""

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        return {
            **super().call_arguments(request),
            "max_area": request.width * request.height,
            "_auto_resize": False,
        }
