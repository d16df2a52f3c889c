"""Conditions of a request, as JSON: LoRAs, control images, an image prompt and a refiner."""

from typing import Annotated

from pydantic import Field

from pixpod.contract.scalars import SHA256, Count, Edge, Share

MAX_LORA_SCALE = 4.0
"""Sliders, which are trained to be used at any scale, go from -4 to 4 (Gandikota et al., Concept
Sliders, 2023); other LoRAs break images well below."""


class LoraInput(Edge):
    """A LoRA, which gives images a style or shows a subject."""

    source: Annotated[str, Field(min_length=1)] = Field(
        description=(
            "An http or https URL of a safetensors file, or the name of a LoRA of the deployment."
        ),
        examples=["https://app.example/style.safetensors", "style"],
    )
    scale: (
        Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)] | None
    ) = Field(
        default=None,
        description="Strength of the effect: 0 is none, below 0 is the opposite; 1 unless given.",
        examples=[0.8],
    )
    sha256: Annotated[str, Field(pattern=SHA256)] | None = Field(
        default=None,
        description=(
            "Of the file, in hex. Another file is refused, and one that the worker has is not "
            "fetched again."
        ),
    )


MAX_CONTROL_SCALE = 2.0
"""diffusers names no limit; the demos of ControlNets go from 0 to 2."""


class ControlNetInput(Edge):
    """A control image, whose shapes the generated image takes over."""

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description=(
            "What the image is, such as canny for edges. A refusal lists those of the model, and "
            "so does describe."
        ),
        examples=["canny"],
    )
    image: Annotated[str, Field(min_length=1)] = Field(
        description=(
            "The control image itself, ready for the net, named like `image`. It is fitted to the "
            "size to generate as `resize` says, and does not choose it."
        ),
        examples=["https://app.example/edges.png"],
    )
    preprocess: bool | None = Field(
        default=None,
        description=(
            "Make the control image of `image`, which is any image then: for canny and, where the "
            "deployment has an estimator, for depth; false unless given."
        ),
    )
    scale: Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] | None = Field(
        default=None, description="Strength of the control: 0 is none; 1 unless given."
    )
    start: Share | None = Field(
        default=None, description="Share of the steps after which it begins; 0 unless given."
    )
    end: Share | None = Field(
        default=None, description="Share of the steps after which it ends; 1 unless given."
    )


class RefinerInput(Edge):
    """A second model, which ends the denoising: num_inference_steps or high_noise_frac."""

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description=(
            "Which refiner of the deployment; the only one unless given. A refusal lists those of "
            "the model, and so does describe."
        ),
    )
    num_inference_steps: Count | None = Field(
        default=None,
        description="Steps of the refiner, after those of the model.",
        examples=[10],
    )
    high_noise_frac: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Share of the steps that the model runs; the refiner runs the others.",
        examples=[0.8],
    )


MAX_IMAGE_SCALE = 1.0
"""diffusers' documentation of IP-Adapter: at 1 images are all that counts, and 0.5 is usual."""

ImageText = Annotated[str, Field(min_length=1)]


class IpAdapterInput(Edge):
    """Images that are shown to the model beside the text: `image` or `images`."""

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description=(
            "Which adapter of the deployment; the only one unless given. A refusal lists those of "
            "the model, and so does describe."
        ),
    )
    image: ImageText | None = Field(
        default=None,
        description="An image whose content or style the result takes up, named like `image`.",
        examples=["https://app.example/style.jpg"],
    )
    images: Annotated[list[ImageText], Field(min_length=1)] | None = Field(
        default=None, description="Several such images, up to four."
    )
    scale: Annotated[float, Field(ge=0, le=MAX_IMAGE_SCALE, allow_inf_nan=False)] | None = Field(
        default=None, description="Strength of the images: 0 is none; 1 unless given."
    )
