"""Components and compiled regions that several families have in common."""

from pixpod.families.spec import ComponentSpec, ImagePromptSpec, RegionSpec, Role
from pixpod.job import Resize

CLIP_TEXT_ENCODER = ComponentSpec(
    name="text_encoder", role=Role.TEXT_ENCODER, class_name="CLIPTextModel", gib_16=0.23
)

VAE = ComponentSpec(name="vae", role=Role.VAE, class_name="AutoencoderKL", gib_16=0.16)

UNET_REGION = RegionSpec(
    component="unet", classes=("UNet2DConditionModel",), is_channels_last=True, has_cuda_graphs=True
)

VAE_REGION = RegionSpec(component="vae", classes=("Decoder",), is_channels_last=True)

UNET_LORA_LAYERS = r".+\.attentions\..+"
"""The blocks of attention: layers of UNets that LoRAs usually have. LoCon has convolutions too."""

UNET_IMAGE_PROMPT = ImagePromptSpec(
    adapter=Role.IP_ADAPTER,
    # CLIP's own preprocessing
    resize=Resize.COVER,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
"""IP-Adapter Plus with the image encoder ViT-H of OpenCLIP."""
