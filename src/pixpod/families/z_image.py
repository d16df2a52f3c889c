"""Z-Image: one stream of image and text tokens, the latter from the language model Qwen3."""

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

Z_IMAGE = FamilySpec(
    name="z-image",
    title="Z-Image",
    components=(
        ComponentSpec(
            name="text_encoder", role=Role.TEXT_ENCODER, class_name="Qwen3Model", gib_16=7.49
        ),
        ComponentSpec(
            name="transformer",
            role=Role.DENOISER,
            class_name="ZImageTransformer2DModel",
            gib_16=11.46,
            gib_8=5.75,
            gib_8_adaln16=5.87,
        ),
        VAE,
    ),
    pipelines={
        Mode.TEXT_TO_IMAGE: "ZImagePipeline",
        Mode.IMAGE_TO_IMAGE: "ZImageImg2ImgPipeline",
        Mode.INPAINT: "ZImageImg2ImgPipeline",
    },
    calls="pixpod.engine.execution.pipelines.z_image:ZImageCalls",
    # VAE stride 8, times 2 for patches
    size_multiple_px=16,
    schedulers=FLOW_MATCH_SCHEDULERS,
    prompt_fields=frozenset({"prompt", "negative_prompt"}),
    has_sequence_length=True,
    guidance=Guidance.CLASSIFIER_FREE,
    # as for FLUX: products with matrices of this width need the same number of rows
    batch_tokens=4608,
    concurrency=(
        ConcurrencyRule(
            max_steps=12,
            max_batch_size=8,
            ahead=2,
            reason="8 steps of half of FLUX's parameters, and the SDK looks for jobs once a second",
        ),
        ConcurrencyRule(
            max_batch_size=2,
            ahead=1,
            reason="one image of 1024 px fills the GPU and takes longer than fetching the next job",
        ),
    ),
    regions=(
        RegionSpec(component="transformer", classes=("ZImageTransformerBlock",)),
        VAE_REGION,
    ),
    # The VAE is of FLUX's size. Denoising is an estimate: 4608 tokens of 3840 channels and an MLP
    # of 2.7 times that, in bfloat16. The encoder keeps the states of its 36 layers.
    working_memory=WorkingMemory(
        text_gib=0.4, fixed_gib=0.4, denoise_gib=0.3, decode_gib=2.0, encode_gib=1.0
    ),
    quantization=QuantizationSpec(
        keep_16_bit=frozenset({"all_x_embedder", "cap_embedder", "t_embedder", "all_final_layer"}),
        adaln=r"(noise_refiner|layers)\.\d+\.adaLN_modulation\.0",
    ),
    # The attention backend stays torch's own choice: a batch of texts of several lengths has a
    # mask, which not all backends take.
    runs_started_steps=True,
    # its transformer has none of diffusers' caches (0.42), which skipping steps needs
    step_cache_blocks=(),
    has_denoiser_files=True,
    header=HeaderSpec(
        # Lumina 2 has the modulation's layer in another place
        has={r"(model\.diffusion_model\.)?layers\.0\.adaLN_modulation\.0\.weight": None},
        # those that see images by SigLIP, which its pipelines do not
        lacks=(r"(model\.diffusion_model\.)?siglip_.+",),
    ),
    # A LoRA of rank 64 for all layers takes 0.36 GiB, without the refiners and modulation 0.26.
    lora=LoraSpec(
        usual=r"layers\.\d+\.(attention|feed_forward)\..+",
        # they see the tokens of all rows in one sequence
        excluded=r"(all_x_embedder|cap_embedder)\..+",
        gib_at_64=0.26,
        whole_gib_at_64=0.36,
    ),
)
