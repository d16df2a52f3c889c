"""Sets the attention kernel that a denoiser uses; the table of GPUs has the fastest one."""

import logging

import torch
from diffusers import ModelMixin
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

log = logging.getLogger(__name__)

NATIVE = "native"
"""torch's own choice; runs everywhere."""

_KERNEL = {"_native_cudnn": SDPBackend.CUDNN_ATTENTION}
"""Kernels to try before a backend of diffusers is used, which reports no fault until it runs."""

_HEADS, _TOKENS, _HEAD_DIM = 2, 128, 128


def set_attention(denoiser: ModelMixin, backend: str, device: torch.device) -> tuple[str, ...]:
    """Have a denoiser use a backend of diffusers, or torch's own choice if that does not run.

    Returns warnings for replies. UNets keep torch's own choice: diffusers has no other for them.
    """
    kernel = _KERNEL.get(backend)
    if kernel is None or _runs(kernel, device):
        denoiser.set_attention_backend(backend)
        return ()
    log.warning("attention backend does not run here", extra={"backend": backend})
    denoiser.set_attention_backend(NATIVE)
    return (f"attention by {backend} does not run with this torch: torch's own is used",)


def _runs(kernel: SDPBackend, device: torch.device) -> bool:
    heads = torch.ones(1, _HEADS, _TOKENS, _HEAD_DIM, device=device, dtype=torch.bfloat16)
    try:
        with torch.inference_mode(), sdpa_kernel(kernel):
            return bool(scaled_dot_product_attention(heads, heads, heads).isfinite().all().item())
    except RuntimeError:  # "No available kernel"
        return False
