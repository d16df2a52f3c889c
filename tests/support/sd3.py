"""Stable Diffusion 3 as a fourth family: one data value, its pipeline calls, and random weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from pixpod.catalog import Size
from pixpod.engine.execution.pipelines.base import (
    Arguments,
    TokenLimit,
    clip_limit,
    image_arguments,
)
from pixpod.engine.model import Pipeline, Tokenizer
from pixpod.families import (
    ComponentSpec,
    ConcurrencyRule,
    FamilySpec,
    Guidance,
    RegionSpec,
    Role,
    SchedulerSpec,
    WorkingMemory,
)
from pixpod.job import GenerationRequest, Mode
from pixpod.methods import is_guided
from pixpod_tools.bake.character_tokenizers import clip_tokenizer, t5_tokenizer


def _encoder(name: str, class_name: str, **sizes: float) -> ComponentSpec:
    return ComponentSpec(
        name=name,
        role=Role.TEXT_ENCODER,
        class_name=class_name,
        **sizes,
    )


SD3 = FamilySpec(
    name="sd3",
    title="SD 3",
    components=(
        _encoder("text_encoder", "CLIPTextModelWithProjection", gib_16=0.23),
        _encoder("text_encoder_2", "CLIPTextModelWithProjection", gib_16=1.29),
        _encoder("text_encoder_3", "T5EncoderModel", gib_16=8.87, gib_8=4.57),
        ComponentSpec(
            name="transformer",
            role=Role.DENOISER,
            class_name="SD3Transformer2DModel",
            gib_16=4.2,
        ),
        ComponentSpec(
            name="vae",
            role=Role.VAE,
            class_name="AutoencoderKL",
            gib_16=0.16,
        ),
    ),
    pipelines={Mode.TEXT_TO_IMAGE: "StableDiffusion3Pipeline"},
    calls="support.sd3:Sd3Calls",
    size_multiple_px=16,
    schedulers={"Euler": SchedulerSpec(class_name="FlowMatchEulerDiscreteScheduler")},
    prompt_fields=frozenset({"prompt", "prompt_2", "negative_prompt"}),
    has_sequence_length=True,
    guidance=Guidance.CLASSIFIER_FREE,
    batch_tokens=16384,
    concurrency=(ConcurrencyRule(max_batch_size=4, ahead=1, reason="a guess for this test"),),
    regions=(
        RegionSpec(component="transformer", classes=("JointTransformerBlock",)),
        RegionSpec(component="vae", classes=("Decoder",), is_channels_last=True),
    ),
    working_memory=WorkingMemory(
        text_gib=0.3, fixed_gib=0.4, denoise_gib=0.4, decode_gib=2.0, encode_gib=1.0
    ),
)

CATALOG_ENTRY = """
[sd3-tiny]
family = "sd3"
licence = "MIT"
precision = { cpu = "float32" }

[sd3-tiny.defaults]
width = 64
height = 64
num_inference_steps = 3
guidance_scale = 4.0
max_sequence_length = 32
scheduler = "Euler"

[sd3-tiny.limits]
min_side_px = 32
max_side_px = 128
max_pixels = 16384
max_steps = 20
max_guidance = 10.0
max_images = 8
max_sequence_length = 64
"""


class Sd3Calls:
    """Two CLIP encoders and T5 read the prompt."""

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        prompts, length = request.prompts, request.text.max_sequence_length
        assert length is not None
        yield clip_limit("prompt", prompts.prompt, tokenizers["tokenizer"])
        yield TokenLimit(
            field="prompt", text=prompts.prompt, tokenizer=tokenizers["tokenizer_3"], limit=length
        )

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        prompts = request.prompts
        embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompts.prompt,
            prompt_2=prompts.prompt_2,
            prompt_3=None,
            negative_prompt=prompts.negative_prompt,
            do_classifier_free_guidance=is_guided(request.sampling.guidance_scale),
            max_sequence_length=request.text.max_sequence_length,
            device=device,
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        return {"guidance_scale": request.sampling.guidance_scale, **image_arguments(request)}

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        vae = pipe.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels: torch.Tensor = pipe.image_processor.postprocess(
            vae.decode(latents, return_dict=False)[0], output_type="pt"
        )
        return pixels


def write_random_sd3(folder: Path) -> None:
    """Write a pipeline with small random weights, as diffusers saves one."""
    torch.manual_seed(0)
    clip = clip_tokenizer()
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(clip),
        tokenizer=clip,
        text_encoder_2=_clip(clip),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
        ),
        tokenizer_3=t5_tokenizer(),
    )
    pipe.save_pretrained(folder)


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
