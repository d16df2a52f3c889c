"""FLUX.1 Fill: the architecture of FLUX.1 with an image and a mask as further channels."""

from dataclasses import replace

from pixpod.families.flux import BLOCKS, FLUX, IMAGE_INPUT
from pixpod.families.spec import Guidance, HeaderSpec
from pixpod.job import Mode

FLUX_FILL = replace(
    FLUX,
    name="flux-fill",
    title="FLUX Fill",
    pipelines={Mode.INPAINT: "FluxFillPipeline"},
    calls="pixpod.engine.execution.pipelines.flux_fill:FluxFillCalls",
    prompt_fields=frozenset({"prompt", "prompt_2"}),
    guidance=Guidance.EMBEDDED_ONLY,
    sees_mask=True,
    # image, masked image and mask
    header=HeaderSpec(has={**BLOCKS, IMAGE_INPUT: 384}),
    # its pipeline opens no cache context around the denoiser (diffusers 0.42), which skipping needs
    step_cache_blocks=(),
    # diffusers has no pipeline of Fill with ControlNets or image prompts
    controlnet=None,
    image_prompt=None,
)
