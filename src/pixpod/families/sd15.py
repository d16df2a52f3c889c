"""Stable Diffusion 1.5: a UNet with one CLIP text encoder."""

from pixpod.families.components import (
    CLIP_TEXT_ENCODER,
    UNET_IMAGE_PROMPT,
    UNET_LORA_LAYERS,
    UNET_REGION,
    VAE,
    VAE_REGION,
)
from pixpod.families.schedulers import UNET_SCHEDULERS
from pixpod.families.spec import (
    ClipTextSpec,
    ComponentSpec,
    ConcurrencyRule,
    ControlNetSpec,
    FamilySpec,
    Guidance,
    HeaderSpec,
    LoraSpec,
    Role,
    WorkingMemory,
)
from pixpod.job import Mode

SD15_TEXT = ClipTextSpec(state=1, is_normalized=True)

SD15 = FamilySpec(
    name="sd15",
    title="SD 1.5",
    components=(
        CLIP_TEXT_ENCODER,
        ComponentSpec(
            name="unet", role=Role.DENOISER, class_name="UNet2DConditionModel", gib_16=1.60
        ),
        VAE,
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "StableDiffusionPipeline",
        Mode.IMAGE_TO_IMAGE: "StableDiffusionImg2ImgPipeline",
        Mode.INPAINT: "StableDiffusionImg2ImgPipeline",
    },
    calls="pixpod.engine.execution.pipelines.sd15:Sd15Calls",
    size_multiple_px=8,
    schedulers=UNET_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "negative_prompt"}),
    has_sequence_length=False,
    guidance=Guidance.CLASSIFIER_FREE,
    # As for SDXL: eight images of 512 px.
    batch_tokens=8192,
    concurrency=(
        ConcurrencyRule(
            max_batch_size=8,
            ahead=1,
            reason="a quarter of SDXL's work an image, which leaves the GPU idle when alone",
        ),
    ),
    # Launching kernels at less cost speeds SD 1.5 up 2.5 times (stable-fast, RTX 4090), and
    # compiling with channels-last takes a third off (fal's table, A100).
    regions=(UNET_REGION, VAE_REGION),
    # As for SDXL.
    working_memory=WorkingMemory(
        text_gib=0.3, fixed_gib=0.5, denoise_gib=0.5, decode_gib=2.0, encode_gib=1.0
    ),
    pipeline_options={"requires_safety_checker": False},
    header=HeaderSpec(
        has={
            r"model\.diffusion_model\.input_blocks\.0\.0\.weight": 4,
            # Stable Diffusion 2 has another text encoder here
            r"cond_stage_model\.transformer\..+": None,
        },
        lacks=(r"model\.diffusion_model\.label_emb\..+",),
    ),
    clip_text=SD15_TEXT,
    lora=LoraSpec(usual=UNET_LORA_LAYERS, gib_at_64=0.05, whole_gib_at_64=0.13),
    controlnet=ControlNetSpec(
        class_name="ControlNetModel",
        pipelines={
            Mode.TEXT_TO_IMAGE: "StableDiffusionControlNetPipeline",
            Mode.IMAGE_TO_IMAGE: "StableDiffusionControlNetImg2ImgPipeline",
            Mode.INPAINT: "StableDiffusionControlNetImg2ImgPipeline",
        },
    ),
    image_prompt=UNET_IMAGE_PROMPT,
)
