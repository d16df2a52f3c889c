"""How many operations a step takes, and so how fast it could be on a GPU; data in `floors.toml`.

Standard library only.
"""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from pixpod.families import Precision

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
    """Tera-operations of one step for one image. What may run in float8 is apart."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """TFLOP/s of a GPU at best; `float8` is None where it has none."""

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
    """Return None for a GPU that the table does not have."""
    text = resources.files("pixpod_bench.gpu").joinpath("floors.toml").read_text(encoding="utf-8")
    peaks = (Peak(**row) for row in tomllib.loads(text)["gpus"])
    return next((peak for peak in peaks if _is_gpu(peak.gpu, device_name)), None)


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


def _is_gpu(name: str, device_name: str) -> bool:
    """`H200` is no GH200, and `A100` no A1000."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![0-9])", device_name) is not None
