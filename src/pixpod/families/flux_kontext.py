"""FLUX.1 Kontext: the architecture of FLUX.1, trained to edit an image as a text says."""

from dataclasses import replace

from pixpod.families.flux import FLUX
from pixpod.job import Mode

FLUX_KONTEXT = replace(
    FLUX,
    name="flux-kontext",
    title="FLUX Kontext",
    pipelines={
        Mode.EDIT: "FluxKontextPipeline",
        Mode.TEXT_TO_IMAGE: "FluxKontextPipeline",
    },
    calls="pixpod.engine.execution.pipelines.flux_kontext:FluxKontextCalls",
    # its pipeline opens no cache context around the denoiser (diffusers 0.42), which skipping needs
    step_cache_blocks=(),
    # diffusers has no pipeline of Kontext with ControlNets or image prompts
    controlnet=None,
    image_prompt=None,
)
