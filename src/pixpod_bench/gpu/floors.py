"""Operations of a denoising step, and the shortest time that a GPU can take for it.

Standard library only. Peak figures are in `pixpod/gpus.toml`.
"""

from dataclasses import dataclass

from pixpod.families import Precision
from pixpod.gpus import find_gpu

_FULL_TOKENS = 4096 + 512
_FLUX_LINEAR, _FLUX_ATTENTION = 59.512, 14.872
"""Tera-operations of one step of FLUX with _FULL_TOKENS: the first grow with the tokens, the second
with their square. A multiply-add counts as two. Counted with torch.utils.flop_counter over a
forward on the meta device (torch 2.13, diffusers 0.42.1); at 768 and 512 px and with 256 tokens of
text the rule agrees with the count within 0.1 %.
"""

_UNET_SAMPLE = {("sdxl", 1024): 6.761, ("sd15", 512): 0.8035}
"""Tera-operations of one sample of a UNet's step, counted likewise; guidance takes two samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Tera-operations of one step for one image, with those that may run in float8 apart."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Peak TFLOP/s of a GPU; `float8` is None for a GPU without it."""

    gpu: str
    bfloat16: float
    float8: float | None = None

    def step_ms(self, work: Work, precision: str) -> float | None:
        """Return the shortest time of a step, or None if the GPU has no such arithmetic."""
        if precision == Precision.FLOAT8_DYNAMIC:
            if self.float8 is None:
                return None
            return (work.linear / self.float8 + work.attention / self.bfloat16) * 1e3
        if precision in (Precision.BFLOAT16, Precision.FLOAT16):
            return work.total / self.bfloat16 * 1e3
        return None


def find_peak(device_name: str) -> Peak | None:
    """Return the peak of a GPU; None for one that the table does not have."""
    gpu = find_gpu(device_name)
    if gpu is None or gpu.bfloat16_tflops is None:
        return None
    return Peak(gpu=gpu.name, bfloat16=gpu.bfloat16_tflops, float8=gpu.float8_tflops)


def step_work(model: str, size_px: int, text_tokens: int | None, samples: int) -> Work | None:
    """Return the work of so many samples, those of guidance included; None if not counted."""
    if model in ("flux-dev", "flux-schnell"):
        share = (size_px * size_px / 256 + (text_tokens or 0)) / _FULL_TOKENS
        return Work(
            linear=_FLUX_LINEAR * share * samples,
            attention=_FLUX_ATTENTION * share * share * samples,
        )
    of_sample = _UNET_SAMPLE.get((model, size_px))
    return Work(linear=of_sample * samples, attention=0.0) if of_sample else None
