"""FLUX.1: a transformer over packed latents, with CLIP for the pooled text and T5 for tokens."""

from collections.abc import Mapping

from pixpod.families.components import CLIP_TEXT_ENCODER, VAE, VAE_REGION
from pixpod.families.schedulers import FLOW_MATCH_SCHEDULERS
from pixpod.families.spec import (
    ComponentSpec,
    ConcurrencyRule,
    ControlNetSpec,
    FamilySpec,
    Guidance,
    HeaderSpec,
    ImagePromptSpec,
    LoraSpec,
    QuantizationSpec,
    RegionSpec,
    Role,
    WorkingMemory,
)
from pixpod.job import Mode, Resize

BLOCKS: Mapping[str, int | None] = {
    r"(model\.diffusion_model\.)?single_blocks\.0\.linear1\.weight"
    r"|single_transformer_blocks\.0\.proj_mlp\.weight": None
}
IMAGE_INPUT = r"(model\.diffusion_model\.)?(img_in|x_embedder)\.weight"
"""Tensors of FLUX.1 under their authors' names and under those of diffusers."""

FLUX = FamilySpec(
    name="flux",
    title="FLUX",
    components=(
        CLIP_TEXT_ENCODER,
        ComponentSpec(
            name="text_encoder_2",
            role=Role.TEXT_ENCODER,
            class_name="T5EncoderModel",
            gib_16=8.87,
            gib_8=4.57,
        ),
        ComponentSpec(
            name="transformer",
            role=Role.DENOISER,
            class_name="FluxTransformer2DModel",
            gib_16=22.17,
            gib_8=11.10,
            gib_8_adaln16=14.10,
        ),
        VAE,
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "FluxPipeline",
        Mode.IMAGE_TO_IMAGE: "FluxImg2ImgPipeline",
        Mode.INPAINT: "FluxImg2ImgPipeline",
    },
    calls="pixpod.engine.execution.pipelines.flux:FluxCalls",
    # VAE stride 8, times 2 for packed latents
    size_multiple_px=16,
    schedulers=FLOW_MATCH_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "prompt_2", "negative_prompt"}),
    has_sequence_length=True,
    guidance=Guidance.EMBEDDED,
    # One image of 1024 px (4096 tokens) with 512 of text: four of them took 2.860 s each instead
    # of 2.966 s, while 512 px gain about three times (tables of diffusers-torchao for an H100 and
    # of sglang for an H200).
    batch_tokens=4608,
    concurrency=(
        ConcurrencyRule(
            max_steps=12,
            max_batch_size=8,
            ahead=2,
            reason="0.4 s an image on an H100, and the SDK looks for jobs once a second",
        ),
        ConcurrencyRule(
            max_batch_size=2,
            ahead=1,
            reason="one image of 1024 px fills the GPU and takes longer than fetching the next job",
        ),
    ),
    # CUDA graphs change FLUX at 1024 px by less than 1 % (cache-dit, L20).
    regions=(
        RegionSpec(
            component="transformer", classes=("FluxTransformerBlock", "FluxSingleTransformerBlock")
        ),
        VAE_REGION,
    ),
    # Decoding: 2.4 GiB for one image and 2.0 for each further one, from the memory columns of
    # diffusers-torchao's tables for an H100. Denoising is an estimate: 4608 tokens of 3072
    # channels and an MLP of four times that, in bfloat16.
    working_memory=WorkingMemory(
        text_gib=0.3, fixed_gib=0.4, denoise_gib=0.3, decode_gib=2.0, encode_gib=1.0
    ),
    # torchao's and flux-fp8-api's recipes agree on these: embedders and the output layer.
    quantization=QuantizationSpec(
        keep_16_bit=frozenset(
            {"x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"}
        ),
        adaln=r"(transformer_blocks|single_transformer_blocks)\.\d+\.norm\w*\.linear",
    ),
    sets_attention_backend=True,
    runs_started_steps=True,
    step_cache_blocks=("transformer_blocks", "single_transformer_blocks"),
    has_denoiser_files=True,
    header=HeaderSpec(has={**BLOCKS, IMAGE_INPUT: 64}),
    # A LoRA of rank 64 for all layers takes 0.65 GiB, without the modulation 0.49.
    lora=LoraSpec(
        usual=r"(single_)?transformer_blocks\.\d+\.(?!norm).+", gib_at_64=0.49, whole_gib_at_64=0.65
    ),
    controlnet=ControlNetSpec(
        class_name="FluxControlNetModel",
        union_class_name="FluxControlNetModel",
        pipelines={
            Mode.TEXT_TO_IMAGE: "FluxControlNetPipeline",
            Mode.IMAGE_TO_IMAGE: "FluxControlNetImg2ImgPipeline",
            Mode.INPAINT: "FluxControlNetImg2ImgPipeline",
        },
        true_cfg_modes=frozenset({Mode.TEXT_TO_IMAGE}),
        sees_latents=True,
    ),
    # SigLIP's own preprocessing
    image_prompt=ImagePromptSpec(
        adapter=Role.REDUX,
        resize=Resize.STRETCH,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        extends_text=True,
    ),
)
