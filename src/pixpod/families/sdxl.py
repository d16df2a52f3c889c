"""SDXL: a UNet with two CLIP text encoders."""

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
    RefinerSpec,
    Role,
    WorkingMemory,
)
from pixpod.job import Mode

SDXL_TEXT = ClipTextSpec(state=2, is_normalized=False)

SDXL = FamilySpec(
    name="sdxl",
    title="SDXL",
    components=(
        CLIP_TEXT_ENCODER,
        ComponentSpec(
            name="text_encoder_2",
            role=Role.TEXT_ENCODER,
            class_name="CLIPTextModelWithProjection",
            gib_16=1.29,
        ),
        ComponentSpec(
            name="unet", role=Role.DENOISER, class_name="UNet2DConditionModel", gib_16=4.78
        ),
        VAE,
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "StableDiffusionXLPipeline",
        Mode.IMAGE_TO_IMAGE: "StableDiffusionXLImg2ImgPipeline",
        Mode.INPAINT: "StableDiffusionXLImg2ImgPipeline",
    },
    calls="pixpod.engine.execution.pipelines.sdxl:SdxlCalls",
    size_multiple_px=8,
    schedulers=UNET_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "prompt_2", "negative_prompt"}),
    has_sequence_length=False,
    guidance=Guidance.CLASSIFIER_FREE,
    # UNets use a third of the GPU's arithmetic alone and about twice that in batches (MLPerf 4.1):
    # eight images of 1024 px.
    batch_tokens=32768,
    concurrency=(
        ConcurrencyRule(
            max_steps=12,
            max_batch_size=8,
            ahead=1,
            reason="few steps leave the GPU idle: a batch of eight takes about a second",
        ),
        ConcurrencyRule(
            max_batch_size=4,
            ahead=1,
            reason="four take 3 s together; more gain little and make the last job wait twice",
        ),
    ),
    # Compiling with channels-last takes a seventh off SDXL (fal's table, A100).
    regions=(UNET_REGION, VAE_REGION),
    # Decoding as for FLUX, whose VAE is the same network. Denoising is an estimate for two rows
    # of classifier-free guidance.
    working_memory=WorkingMemory(
        text_gib=0.3, fixed_gib=0.5, denoise_gib=0.5, decode_gib=2.0, encode_gib=1.0
    ),
    pipeline_options={"add_watermarker": False},
    upcasts_vae=True,
    header=HeaderSpec(
        has={
            r"model\.diffusion_model\.input_blocks\.0\.0\.weight": 4,
            r"model\.diffusion_model\.label_emb\.0\.0\.weight": None,
            # the refiner has one text encoder
            r"conditioner\.embedders\.1\..+": None,
        }
    ),
    clip_text=SDXL_TEXT,
    lora=LoraSpec(usual=UNET_LORA_LAYERS, gib_at_64=0.32, whole_gib_at_64=0.37),
    controlnet=ControlNetSpec(
        class_name="ControlNetModel",
        pipelines={
            Mode.TEXT_TO_IMAGE: "StableDiffusionXLControlNetPipeline",
            Mode.IMAGE_TO_IMAGE: "StableDiffusionXLControlNetImg2ImgPipeline",
            Mode.INPAINT: "StableDiffusionXLControlNetImg2ImgPipeline",
        },
        union_class_name="ControlNetUnionModel",
        union_pipelines={
            Mode.TEXT_TO_IMAGE: "StableDiffusionXLControlNetUnionPipeline",
            Mode.IMAGE_TO_IMAGE: "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            Mode.INPAINT: "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        },
    ),
    refiner=RefinerSpec(
        class_name="UNet2DConditionModel",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        calls="pixpod.engine.execution.pipelines.sdxl_refiner:SdxlRefinerCalls",
    ),
    image_prompt=UNET_IMAGE_PROMPT,
)
