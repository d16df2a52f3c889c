"""The `input` of a job, as JSON. Only the edge uses it; the rest sees dataclasses."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixpod.contract.condition_inputs import (
    ControlNetInput,
    IpAdapterInput,
    LoraInput,
    RefinerInput,
)
from pixpod.contract.delivery_input import OutputInput
from pixpod.contract.scalars import (
    API_VERSION,
    IDEMPOTENCY_KEY,
    MAX_PROMPT_CHARACTERS,
    NOT_BLANK,
    Count,
    Edge,
    Number,
    Seeds,
    Side,
    Sources,
    Text,
)
from pixpod.job import LongPrompt, Quality, Resize, WebhookEvent


class JobInput(Edge):
    """The `input` of a job.

    A field that is absent or null takes the model's default. A model has limits of its own for
    sizes, steps, guidance and number of images; a refusal names them.
    """

    model_config = ConfigDict(
        title="Input of a pixpod job",
        json_schema_extra={
            "examples": [
                {"model": "flux-schnell", "prompt": "a red circle on a blue background"},
                {
                    "model": "sdxl",
                    "prompt": "a lighthouse at dusk, oil on canvas",
                    "negative_prompt": "text, frame",
                    "width": 1216,
                    "height": 832,
                    "num_images": 2,
                    "seed": 7,
                    "output": {"format": "webp", "quality": 85},
                },
            ]
        },
    )

    api_version: Annotated[int, Field(ge=API_VERSION, le=API_VERSION)] | None = Field(
        default=None, description="Version of this contract; the only one unless given."
    )
    model: str = Field(
        description="Name of a model that the worker serves.", examples=["flux-dev", "sdxl", "sd15"]
    )
    prompt: Annotated[
        str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, pattern=NOT_BLANK)
    ] = Field(description="Text that the image shows.")
    prompt_2: Annotated[Text, Field(min_length=1)] | None = Field(
        default=None,
        description="For the second text encoder: FLUX, SD 3.5, SDXL; the prompt unless given.",
    )
    negative_prompt: Text | None = Field(
        default=None,
        description=(
            "Text that the image avoids. It needs true_cfg_scale above 1 on FLUX, guidance_scale "
            "above 1 on others."
        ),
    )
    width: Side | None = Field(
        default=None,
        description="Pixels: a multiple of 8 on SDXL and SD 1.5, of 16 on others.",
        examples=[1024],
    )
    height: Side | None = Field(
        default=None,
        description="Pixels: a multiple of 8 on SDXL and SD 1.5, of 16 on others.",
        examples=[1024],
    )
    image: Sources | None = Field(
        default=None,
        description=(
            "Image to begin with: an http or https URL, a data: URI or base64 of a PNG, JPEG or "
            "WebP file. Its own size is generated, as far as the model serves it, unless width "
            "and height are given. A list of images to edit together, for FLUX.2 klein."
        ),
        examples=["https://app.example/photo.jpg"],
    )
    mask: str | None = Field(
        default=None,
        description=(
            "Grey image, named like image and of its shape: white is generated, black stays as it "
            "is, grey blends."
        ),
    )
    mask_blur: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="Pixels by which the mask's edges are softened; 0 unless given."
    )
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description=(
            "Share of the steps that run on the image: little changes it little. 0.6 unless given, "
            "1 with a mask."
        ),
        examples=[0.6],
    )
    resize: Annotated[Resize, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "How an image of another shape is fitted: cover crops it around its centre, contain "
            "repeats its outermost pixels as borders, stretch distorts it; cover unless given."
        ),
    )
    loras: list[LoraInput] | None = Field(
        default=None,
        description="LoRAs, whose effects add up; their order does not matter. See loras.md.",
    )
    controlnets: list[ControlNetInput] | None = Field(
        default=None,
        description="Control images, whose effects add up. See controlnets.md.",
    )
    ip_adapter: IpAdapterInput | None = Field(
        default=None, description="Images as a part of the prompt. See image-prompts.md."
    )
    refiner: RefinerInput | None = Field(
        default=None, description="SDXL only: a second model for the last steps. See refiner.md."
    )
    upscale: Literal[2, 4] | None = Field(
        default=None,
        description=(
            "Make the finished images so many times as wide and as high. See upscaling.md."
        ),
        examples=[2],
    )
    num_inference_steps: Count | None = Field(
        default=None, description="Denoising steps.", examples=[28]
    )
    guidance_scale: Number | None = Field(
        default=None,
        description="How closely to follow the prompt; refused by models distilled without it.",
        examples=[3.5],
    )
    true_cfg_scale: Annotated[Number, Field(ge=1)] | None = Field(
        default=None, description="FLUX only; above 1 it needs a negative_prompt."
    )
    max_sequence_length: Count | None = Field(
        default=None, description="Not for SDXL and SD 1.5: tokens of a text that are read."
    )
    on_long_prompt: Annotated[LongPrompt, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "What to do with a prompt of more tokens than are read at once: refuse it, truncate "
            "it, or read it in several chunks (SD 1.5 and SDXL); refuse unless given. See "
            "prompts.md."
        ),
    )
    prompt_weights: bool | None = Field(
        default=None,
        description=(
            "SD 1.5 and SDXL: read weights such as (red)1.5 in all prompts; without it, brackets "
            "and signs are text. See prompts.md."
        ),
    )
    clip_skip: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description=(
            "SD 1.5 and SDXL: number of the last layers of the text encoders that do not read the "
            "prompt; 0 unless given."
        ),
    )
    num_images: Count | None = Field(
        default=None, description="1 unless given, or as many as there are seeds."
    )
    seed: Seeds | None = Field(
        default=None,
        description=(
            "One for the first image, counted up for the others, or one for each image. Derived "
            "from the job's id unless given."
        ),
        examples=[42, [1, 2, 3]],
    )
    scheduler: str | None = Field(
        default=None,
        description=(
            "A class name of diffusers or a usual alias such as `DPM++ 2M Karras`; a refusal lists "
            "those of the model."
        ),
        examples=["EulerDiscreteScheduler", "DPM++ 2M Karras"],
    )
    quality: Annotated[Quality, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "max keeps the denoiser in 16 bits; default uses the precision that suits the GPU; "
            "turbo, FLUX only, skips steps that change little; default unless given. One that the "
            "deployment does not offer is refused."
        ),
    )
    deterministic: bool | None = Field(
        default=None, description="Run each image in a batch of its own; false unless given."
    )
    stack: str | None = Field(
        default=None,
        description=(
            "studio, heavy or a preset of the deployment: it fills fields that the job does not "
            "give. See stacks.md."
        ),
        examples=["studio"],
    )
    safety: bool | None = Field(
        default=None,
        description=(
            "true classifies the images and says in nsfw which of them are unsafe for work, also "
            "where the deployment does not; false is refused where it does. See safety.md."
        ),
    )
    idempotency_key: Annotated[str, Field(pattern=IDEMPOTENCY_KEY)] | None = Field(
        default=None,
        description=(
            "Makes it safe to send a request twice: a later job with the same key is answered from "
            "the first one's stored result, without the GPU, and refused if it asks for something "
            "else. Jobs with one key at the same time may all run. Keys count per "
            "output.key_prefix. Seeds that are not given derive from the key. Only with delivery "
            "by s3, into the deployment's bucket: put, inline and directory keep no result."
        ),
        examples=["order-1234"],
    )
    webhook_url: str | None = Field(
        default=None,
        description=(
            "Receiver of the job's events: an https URL with a public address. See webhooks.md. "
            "The platform's own `webhook` stands beside `input`."
        ),
        examples=["https://app.example/pixpod"],
    )
    webhook_events: (
        Annotated[list[Annotated[WebhookEvent, Field(strict=False)]], Field(min_length=1)] | None
    ) = Field(
        default=None,
        description=(
            "Events that webhook_url gets; the ends of the job (completed, failed, cancelled) "
            "unless given."
        ),
        examples=[["started", "completed"]],
    )
    output: OutputInput | None = None


OBJECTS: Mapping[str, type[BaseModel]] = {
    "output": OutputInput,
    "ip_adapter": IpAdapterInput,
    "refiner": RefinerInput,
}
"""Fields that are objects, and what they are."""

LISTS: Mapping[str, type[BaseModel]] = {"loras": LoraInput, "controlnets": ControlNetInput}
"""Fields that are lists of objects, and what their elements are."""
