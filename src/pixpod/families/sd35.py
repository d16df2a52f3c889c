"""Stable Diffusion 3.5: a transformer that attends to two CLIP encoders and to T5.

Medium and large differ in the size of the transformer, which the catalog gives. T5 may be left out.
"""

from pixpod.families.components import VAE, VAE_REGION
from pixpod.families.schedulers import FLOW_MATCH_SCHEDULERS
from pixpod.families.spec import (
    ComponentSpec,
    ConcurrencyRule,
    FamilySpec,
    Guidance,
    HeaderSpec,
    LoraSpec,
    QuantizationSpec,
    RegionSpec,
    Role,
    WorkingMemory,
)
from pixpod.job import Mode

SD35 = FamilySpec(
    name="sd35",
    title="SD 3.5",
    components=(
        ComponentSpec(
            name="text_encoder",
            role=Role.TEXT_ENCODER,
            class_name="CLIPTextModelWithProjection",
            gib_16=0.23,
        ),
        ComponentSpec(
            name="text_encoder_2",
            role=Role.TEXT_ENCODER,
            class_name="CLIPTextModelWithProjection",
            gib_16=1.29,
        ),
        ComponentSpec(
            name="text_encoder_3",
            role=Role.TEXT_ENCODER,
            class_name="T5EncoderModel",
            gib_16=8.87,
            gib_8=4.57,
            is_optional=True,
        ),
        # those of medium
        ComponentSpec(
            name="transformer",
            role=Role.DENOISER,
            class_name="SD3Transformer2DModel",
            gib_16=4.60,
            gib_8=2.53,
            gib_8_adaln16=3.24,
        ),
        VAE,
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "StableDiffusion3Pipeline",
        Mode.IMAGE_TO_IMAGE: "StableDiffusion3Img2ImgPipeline",
        Mode.INPAINT: "StableDiffusion3Img2ImgPipeline",
    },
    calls="pixpod.engine.execution.pipelines.sd35:Sd35Calls",
    # VAE stride 8, times 2 for patches
    size_multiple_px=16,
    schedulers=FLOW_MATCH_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "prompt_2", "negative_prompt"}),
    has_sequence_length=True,
    guidance=Guidance.CLASSIFIER_FREE,
    # Two images of 1024 px (4096 tokens) with 333 of text: an estimate. Guidance doubles the
    # tokens, and the layers are half as wide as those of FLUX, which one such image saturates.
    batch_tokens=8858,
    concurrency=(
        ConcurrencyRule(
            max_batch_size=4,
            ahead=1,
            reason="medium takes as long as SDXL: four take 3 s together",
        ),
    ),
    regions=(
        RegionSpec(component="transformer", classes=("JointTransformerBlock",)),
        VAE_REGION,
    ),
    # Decoding as for FLUX, whose VAE is the same network. Denoising is an estimate for two rows of
    # classifier-free guidance in large: 4429 tokens of 2432 channels each.
    working_memory=WorkingMemory(
        text_gib=0.3, fixed_gib=0.4, denoise_gib=0.5, decode_gib=2.0, encode_gib=1.0
    ),
    # As for FLUX: embedders and the output layer.
    quantization=QuantizationSpec(
        keep_16_bit=frozenset({"time_text_embed", "context_embedder", "norm_out", "proj_out"}),
        adaln=r"transformer_blocks\.\d+\.norm1(_context)?\.linear",
    ),
    runs_started_steps=True,
    has_denoiser_files=True,
    header=HeaderSpec(
        has={
            # Stable Diffusion 3 has no such norms
            r"(model\.diffusion_model\.)?joint_blocks\.0\.x_block\.attn\.ln_q\.weight"
            r"|transformer_blocks\.0\.attn\.norm_q\.weight": None,
            r"(model\.diffusion_model\.)?x_embedder\.proj\.weight|pos_embed\.proj\.weight": 16,
        }
    ),
    # In large, a LoRA of rank 64 for all layers takes 0.55 GiB, without the modulation 0.39.
    lora=LoraSpec(
        usual=r"transformer_blocks\.\d+\.(?!norm).+", gib_at_64=0.39, whole_gib_at_64=0.55
    ),
)
