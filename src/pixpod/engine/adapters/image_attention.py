"""Attention of a UNet to the tokens of images, beside that to the text.

Nothing here is put on the UNet that plain requests run on: a copy that shares its weights gets it.
"""

from collections.abc import Iterator, Sequence

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import nn
from torch.nn import functional

from pixpod.engine.adapters.weight_sharing import share_weights
from pixpod.engine.model import Component

_CROSS_ATTENTION = "attn2.processor"


class ImageAttention(nn.Module):
    """An attention processor with keys and values of its own for the tokens of images.

    Computes what diffusers' `IPAdapterAttnProcessor2_0` does, but takes the scale of each row as a
    tensor, so that rows with other scales share a batch and compiled code. The two weights are no
    Linear layers, for which LoRAs would get slots.
    """

    def __init__(self, key: torch.Size, value: torch.Size) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(key))
        self.value = nn.Parameter(torch.empty(value))

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: tuple[torch.Tensor, list[torch.Tensor]],
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Take (rows, positions, channels), and the text with `[tokens, scales]` of the images."""
        text, (tokens, scales) = encoder_hidden_states
        query = _heads(attn.to_q(hidden_states), attn)
        attended = _attend(query, attn.to_k(text), attn.to_v(text), attn)
        key, value = functional.linear(tokens, self.key), functional.linear(tokens, self.value)
        attended = attended + scales * _attend(query, key, value, attn)
        attended = attn.to_out[1](attn.to_out[0](attended))
        result: torch.Tensor = attended / attn.rescale_output_factor
        return result


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn: Attention
) -> torch.Tensor:
    heads = functional.scaled_dot_product_attention(query, _heads(key, attn), _heads(value, attn))
    return heads.transpose(1, 2).flatten(2)


def _heads(states: torch.Tensor, attn: Attention) -> torch.Tensor:
    """Turn (rows, positions, channels) into (rows, heads, positions, channels of a head)."""
    rows, positions, _ = states.shape
    return states.view(rows, positions, attn.heads, -1).transpose(1, 2)


class IpAdapter(nn.Module):
    """An IP-Adapter Plus: it makes tokens of what an image encoder sees, and attends to them."""

    def __init__(
        self, projection: IPAdapterPlusImageProjection, attentions: Sequence[ImageAttention]
    ) -> None:
        super().__init__()
        self.projection = projection
        self.attentions = nn.ModuleList(attentions)

    @property
    def _processors(self) -> Sequence[ImageAttention]:
        return [each for each in self.attentions if isinstance(each, ImageAttention)]

    def misfit(self, unet: Component) -> str | None:
        """Return why it cannot be put on a UNet; None if it can."""
        wanted = [_sizes(attn.to_k.weight, attn.to_v.weight) for attn in _attentions(unet)]
        found = [_sizes(each.key, each.value) for each in self._processors]
        if len(wanted) != len(found):
            return f"it has {len(found)} layers, and the UNet {len(wanted)}"
        pairs = zip(found, wanted, strict=True)
        return next((f"it has a layer of {a} for one of {b}" for a, b in pairs if a != b), None)

    def on_copy_of(self, unet: Component) -> Component:
        """Return a UNet around the same weights that attends to images.

        Its call takes `[tokens, scales]` as the `image_embeds` of `added_cond_kwargs`.
        """
        copy: Component = share_weights(unet)
        copy.register_to_config(encoder_hid_dim_type="ip_image_proj")
        copy.encoder_hid_proj = nn.Identity()  # tokens come as they are
        for attn, processor in zip(_attentions(copy), self._processors, strict=True):
            attn.set_processor(processor)
        return copy


def _sizes(key: torch.Tensor, value: torch.Tensor) -> str:
    return " and ".join("x".join(map(str, weight.shape)) for weight in (key, value))


def _attentions(unet: Component) -> Iterator[Attention]:
    """Yield the layers that attend to the text, in the order in which adapters count them."""
    for name in unet.attn_processors:
        if name.endswith(_CROSS_ATTENTION):
            yield unet.get_submodule(name.removesuffix(".processor"))
