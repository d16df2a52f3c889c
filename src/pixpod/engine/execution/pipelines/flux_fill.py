"""FLUX.1 Fill: the transformer sees the image without what the mask marks, and the mask."""

from collections import deque
from types import SimpleNamespace

import torch

from pixpod.engine.execution.pipelines.base import Arguments
from pixpod.engine.execution.pipelines.flux import PIXEL_CHANNELS, FluxCalls
from pixpod.engine.model import Pipeline


class _EncodedImages:
    """Stands in for the VAE of the pipeline, which would encode images itself.

    They are encoded already, and cached. It asks for the image of each row, then once for those
    without what the masks mark.
    """

    def __init__(self, images: torch.Tensor, masked: torch.Tensor) -> None:
        self.dtype = images.dtype
        self.config = SimpleNamespace(
            shift_factor=0.0, scaling_factor=1.0, latent_channels=images.shape[1]
        )
        self._left = deque([*torch.split(images, 1), masked])

    def encode(self, image: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=self._left.popleft())


class FluxFillCalls(FluxCalls):
    """Calls Fill, whose pipeline takes images and masks as pixels only."""

    def mask_arguments(
        self, pipe: Pipeline, image: torch.Tensor, masked: torch.Tensor, mask: torch.Tensor
    ) -> Arguments:
        pipe.vae = _EncodedImages(image, masked)
        rows, _, height, width = mask.shape
        pixels = torch.zeros((1, 1, 1, 1), device=mask.device)
        return {
            "image": pixels.expand((rows, PIXEL_CHANNELS, height, width)),
            "mask_image": mask.float(),
        }
