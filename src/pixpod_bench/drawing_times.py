"""How long the stages of one drawing took, whoever drew."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Of a whole batch, from the request to pixels in host memory."""

    text_encode_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float
    pixels: tuple[bytes, ...] = field(repr=False)
    warnings: tuple[str, ...] = ()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
