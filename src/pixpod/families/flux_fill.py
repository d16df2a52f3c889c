"""FLUX.1 Fill: the architecture of FLUX.1 with an image and a mask as further channels."""

from dataclasses import replace

from pixpod.families.flux import FLUX
from pixpod.families.spec import Guidance
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
    # its pipeline opens no cache context around the denoiser (diffusers 0.42), which skipping needs
    step_cache_blocks=(),
    # diffusers has no pipeline of Fill with ControlNets or image prompts
    controlnet=None,
    image_prompt=None,
)
