"""FLUX.2 klein: the language model Qwen3 reads texts, and given images are further tokens."""

from pixpod.families.components import VAE_REGION
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

FLUX2_KLEIN = FamilySpec(
    name="flux2-klein",
    title="FLUX.2 klein",
    components=(
        ComponentSpec(
            name="text_encoder", role=Role.TEXT_ENCODER, class_name="Qwen3ForCausalLM", gib_16=7.49
        ),
        ComponentSpec(
            name="transformer",
            role=Role.DENOISER,
            class_name="Flux2Transformer2DModel",
            gib_16=7.22,
            gib_8=3.66,
            gib_8_adaln16=3.79,
        ),
        ComponentSpec(name="vae", role=Role.VAE, class_name="AutoencoderKLFlux2", gib_16=0.16),
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "Flux2KleinPipeline",
        Mode.EDIT: "Flux2KleinPipeline",
    },
    calls="pixpod.engine.execution.pipelines.flux2_klein:Flux2KleinCalls",
    # VAE stride 8, times 2 for packed latents
    size_multiple_px=16,
    schedulers=FLOW_MATCH_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "negative_prompt"}),
    has_sequence_length=True,
    guidance=Guidance.CLASSIFIER_FREE,
    # as for FLUX, whose matrices have the same width
    batch_tokens=4608,
    concurrency=(
        ConcurrencyRule(
            max_steps=12,
            max_batch_size=8,
            ahead=2,
            reason="4 steps of a third of FLUX's parameters, and the SDK looks for jobs once a "
            "second",
        ),
        ConcurrencyRule(
            max_batch_size=2,
            ahead=1,
            reason="one image of 1024 px fills the GPU and takes longer than fetching the next job",
        ),
    ),
    regions=(
        RegionSpec(
            component="transformer",
            classes=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
        ),
        VAE_REGION,
    ),
    # The VAE is of FLUX's size. Denoising is an estimate: 4608 tokens of 3072 channels and an MLP
    # of six times that, in bfloat16. The encoder keeps the states of its 36 layers, and computes
    # 151,936 values for each of 512 tokens.
    working_memory=WorkingMemory(
        text_gib=0.7, fixed_gib=0.4, denoise_gib=0.3, decode_gib=2.0, encode_gib=1.0
    ),
    quantization=QuantizationSpec(
        keep_16_bit=frozenset(
            {"x_embedder", "context_embedder", "time_guidance_embed", "norm_out", "proj_out"}
        ),
        adaln=r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear",
    ),
    sets_attention_backend=True,
    max_edited=4,
    # four steps are too few to skip any
    step_cache_blocks=(),
    has_denoiser_files=True,
    header=HeaderSpec(
        has={
            r"(model\.diffusion_model\.)?single_stream_modulation\.lin(ear)?\.weight": None,
        },
        # FLUX.2 dev sees the guidance
        lacks=(
            r"(model\.diffusion_model\.)?guidance_in\..+",
            r"time_guidance_embed\.guidance_embedder\..+",
        ),
    ),
    # A LoRA of rank 64 for all layers takes 0.19 GiB, for those of the blocks 0.18.
    lora=LoraSpec(
        usual=r"(single_)?transformer_blocks\.\d+\..+", gib_at_64=0.18, whole_gib_at_64=0.19
    ),
)
