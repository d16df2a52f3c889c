"""The protocol of the code of families, and functions that several of them share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from pixpod.catalog import Size
from pixpod.engine.model import Component, LoadedModel, Pipeline, Tokenizer
from pixpod.errors import ModelUnavailable
from pixpod.families import ClipTextSpec
from pixpod.job import GenerationRequest, ImagePromptOptions, Prompts

Arguments = dict[str, Any]
"""Keyword arguments of a pipeline's call. A tensor's first dimension is 1, for one prompt. A list
has one tensor, where those of other prompts have other lengths. Any: the types differ.
"""


EncoderNames = tuple[str, str, str]
"""The field of the text that an encoder reads, and the names of its tokenizer and of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimit:
    """A text and the number of tokens, special ones included, that its text encoder reads.

    `is_hard` is false where another encoder reads the whole text anyway.
    """

    field: str
    text: str
    tokenizer: Tokenizer
    limit: int
    is_hard: bool = True

    def count_tokens(self) -> int:
        """Count the tokens of the whole text, special ones included."""
        return len(self.tokenizer(self.text, truncation=False, verbose=False).input_ids)


class PipelineCalls(Protocol):
    """Calls a family's pipelines. Every method runs under `torch.inference_mode`.

    The methods for control images and image prompts are needed only where the family takes some.
    """

    def token_limits(
        self, tokenizers: Mapping[str, Tokenizer], request: GenerationRequest
    ) -> Iterator[TokenLimit]:
        """Yield the texts of a request, each with its tokenizer and the tokens that are read."""
        ...

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        """Return the embeddings of one request. Its tokenizers cut texts that are too long."""
        ...

    def call_arguments(self, request: GenerationRequest) -> Arguments:
        """Return scales, strength and size under the names that the pipeline's call has."""
        ...

    def encode_image(self, pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
        """Return scaled latents of (rows, 3, height, width) with values of -1 to 1."""
        ...

    def control_arguments(
        self, pipe: Pipeline, request: GenerationRequest, images: list[torch.Tensor]
    ) -> Arguments:
        """Return control images under the name that the pipeline's call has.

        Each of `images` has all rows of one control, as the family's nets see them. May change the
        pipeline for this call.
        """
        ...

    def check_image_prompt(self, model: LoadedModel, prompt: ImagePromptOptions) -> None:
        """Raise ModelUnavailable if an adapter does not go with the model or the image encoder."""
        ...

    def see_image(
        self, model: LoadedModel, prompt: ImagePromptOptions, pixels: torch.Tensor
    ) -> torch.Tensor:
        """Return what the image encoder sees in (1, 3, height, width), which are normalised."""
        ...

    def image_tokens(
        self, model: LoadedModel, prompt: ImagePromptOptions, seen: torch.Tensor
    ) -> torch.Tensor:
        """Return the adapter's tokens of what was seen in one image: (1, tokens, channels)."""
        ...

    def with_images(
        self,
        pipe: Pipeline,
        arguments: Arguments,
        tokens: torch.Tensor,
        negative: torch.Tensor | None,
        scales: torch.Tensor,
    ) -> Arguments:
        """Return the arguments of all rows with the tokens of their images.

        `tokens` and `negative`, the tokens of no images, are (rows, tokens, channels), and `scales`
        (rows, 1, 1). May change the pipeline for this call.
        """
        ...

    def pack(self, pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
        """Return latents of (rows, channels, height, width) as the denoiser has them."""
        ...

    def decode(self, pipe: Pipeline, latents: torch.Tensor, size: Size) -> torch.Tensor:
        """Return images of (rows, 3, height, width) with values of 0 to 1."""
        ...


@runtime_checkable
class ArrangingCalls(Protocol):
    """Calls pipelines that take arguments in another form than conditions compute them."""

    def arrange(self, pipe: Pipeline, arguments: Arguments) -> Arguments:
        """Return the arguments of all rows as the pipeline's call takes them.

        May change the pipeline for this call.
        """
        ...


class MaskCalls(PipelineCalls, Protocol):
    """Calls the pipelines of a family whose denoiser sees the mask."""

    def mask_arguments(
        self, pipe: Pipeline, image: torch.Tensor, masked: torch.Tensor, mask: torch.Tensor
    ) -> Arguments:
        """Return image and mask as the pipeline's call takes them, from those of all rows.

        `image` are scaled latents, `masked` those of the image without what the mask marks, and
        `mask` is true there, as (rows, 1, height, width) of pixels. May change the pipeline for
        this call.
        """
        ...


class RefinerCalls(Protocol):
    """Reads texts for the refiners of a family, and prepares their pipeline."""

    def check_fit(self, model: LoadedModel, denoiser: Component) -> None:
        """Raise ModelUnavailable for a refiner that does not go with a model."""
        ...

    def reads_like_the_model(self, model: LoadedModel, denoiser: Component) -> bool:
        """Return whether a refiner takes the model's own embeddings."""
        ...

    def encode_text(
        self, pipe: Pipeline, request: GenerationRequest, device: torch.device
    ) -> Arguments:
        """Return the embeddings of one request for a refiner that reads texts in its own way."""
        ...

    def prepare(self, pipe: Pipeline) -> None:
        """Change the refiner's pipeline, which is used once, to suit its denoiser."""
        ...


def check_side(name: str, encoder: Component, prompt: ImagePromptOptions) -> None:
    """Raise ModelUnavailable for an image encoder that sees images of another size."""
    expected, got = prompt.size_px, encoder.config.image_size
    if expected != got:
        raise ModelUnavailable(
            f"{name}: expected an image encoder for {expected} pixels a side, got one for {got}: "
            "correct size_px in the catalog"
        )


def check_channels(name: str, expected: int, got: int, subject: str) -> None:
    """Raise ModelUnavailable for an adapter that was made for something else."""
    if expected != got:
        raise ModelUnavailable(f"{name}: expected {expected} channels for {subject}, got {got}")


def clip_limit(field: str, text: str, tokenizer: Tokenizer) -> TokenLimit:
    return TokenLimit(field=field, text=text, tokenizer=tokenizer, limit=tokenizer.model_max_length)


def chat_limit(
    field: str, tokenizer: Tokenizer, request: GenerationRequest, *, enable_thinking: bool
) -> TokenLimit:
    """Return the limit of a text that a language model reads as what its user says."""
    assert request.text.max_sequence_length is not None
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": getattr(request.prompts, field)}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=enable_thinking,
    )
    return TokenLimit(
        field=field, text=chat, tokenizer=tokenizer, limit=request.text.max_sequence_length
    )


def second_texts(prompts: Prompts) -> Iterator[tuple[str, str]]:
    """Yield the texts of a second encoder: `prompt_2` if given, and the same negative prompt."""
    if prompts.prompt_2 is None:
        yield "prompt", prompts.prompt
    else:
        yield "prompt_2", prompts.prompt_2
    if prompts.negative_prompt is not None:
        yield "negative_prompt", prompts.negative_prompt


def replace_embeddings(
    plain: Arguments,
    pipe: Pipeline,
    request: GenerationRequest,
    spec: ClipTextSpec,
    encoders: Sequence[EncoderNames],
) -> Arguments:
    """Put the embeddings of weighted and long texts, and of a `clip_skip`, in the place of plain
    ones. Pooled embeddings stay as they are.

    diffusers has no weights and no chunks, and its `clip_skip` of SD 1.5 fails with the
    transformers of today (diffusers#14124).
    """
    prompts, text = request.prompts, request.text
    if not prompts.weighted and text.num_chunks == 1 and not text.clip_skip:
        return plain
    # imported late: compel takes time at boot, and few requests need it
    from pixpod.engine.execution.pipelines.clip_text import ClipEncoder, encode

    fields, tokenizers, modules = zip(*encoders, strict=True)
    found = [
        ClipEncoder(tokenizer=getattr(pipe, tokenizer), module=getattr(pipe, module))
        for tokenizer, module in zip(tokenizers, modules, strict=True)
    ]
    texts = [prompts.parts_of(field) for field in fields]
    embeds = encode(found, texts, spec, clip_skip=text.clip_skip, num_chunks=text.num_chunks)
    if plain["negative_prompt_embeds"] is None:
        return {**plain, "prompt_embeds": embeds}
    if prompts.negative_prompt is None and pipe.config.get("force_zeros_for_empty_prompt"):
        negative = torch.zeros_like(embeds)
    else:  # as in diffusers, clip_skip is for the prompt alone
        texts = [prompts.parts_of("negative_prompt")] * len(found)
        negative = encode(found, texts, spec, clip_skip=0, num_chunks=text.num_chunks)
    return {**plain, "prompt_embeds": embeds, "negative_prompt_embeds": negative}


def image_arguments(request: GenerationRequest) -> Arguments:
    """Return the strength of a request with an image, which takes its size from the latents."""
    if request.sampling.strength is None:
        return {"width": request.width, "height": request.height}
    return {"strength": request.sampling.strength}


def encode_pixels(pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Return the mode of the VAE's distribution, not scaled. Without the sampling, equal images
    have equal latents, which can be cached.
    """
    vae = pipe.vae
    parameter = next(vae.encoder.parameters())  # on a CPU the decoder has another format
    latents: torch.Tensor = vae.encode(pixels.to(parameter)).latent_dist.mode()
    return latents


def encode_latents(pipe: Pipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pixels as latents with the VAE's scale, as diffusers' pipelines do."""
    vae, latents = pipe.vae, encode_pixels(pipe, pixels)
    if (normal := _normal(vae, latents)) is not None:
        mean, std = normal
        latents = (latents - mean) / std
    return latents * float(vae.config.scaling_factor)


def decode_latents(pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
    """Decode unpacked latents by the VAE's scale, as diffusers' pipelines do."""
    vae = pipe.vae
    latents = latents.to(vae.dtype)
    if (normal := _normal(vae, latents)) is not None:
        mean, std = normal
        latents = latents * std / vae.config.scaling_factor + mean
    else:
        latents = latents / vae.config.scaling_factor
    image = vae.decode(latents, return_dict=False)[0]
    pixels: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
    return pixels


def _normal(vae: Component, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return mean and deviation of each channel; None for a VAE that has one scale only."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None
    mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
    return mean, std
