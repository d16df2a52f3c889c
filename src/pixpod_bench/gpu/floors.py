"""How many operations a step takes, and so how fast it could be on a card; data in `floors.toml`.

Standard library only.
"""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from pixpod.catalog import Precision

_FULL_TOKENS = 4096 + 512
_FLUX_LINEAR, _FLUX_ATTENTION = 59.512, 14.872
"""Tera-operations of one step of FLUX with _FULL_TOKENS: the first grow with the tokens, the second
with their square. A multiply-add counts as two. Counted with torch.utils.flop_counter over a
forward on the meta device (torch 2.13, diffusers 0.42.1); at 768 and 512 px and with 256 tokens of
text the rule agrees with the count within 0.1 %.
"""

_UNET_ROW = {("sdxl", 1024): 6.761, ("sd15", 512): 0.8035}
"""Of one row of a UNet's step, counted likewise; guidance takes two rows."""


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
    """TFLOP/s of a card at best; `float8` is None where it has none."""

    card: str
    bfloat16: float
    float8: float | None = None

    def step_ms(self, work: Work, precision: str) -> float | None:
        """The shortest a step can take, or None if the card has no such arithmetic."""
        if precision == Precision.FLOAT8_DYNAMIC:
            if self.float8 is None:
                return None
            return (work.linear / self.float8 + work.attention / self.bfloat16) * 1e3
        if precision in (Precision.BFLOAT16, Precision.FLOAT16):
            return work.total / self.bfloat16 * 1e3
        return None


def find_peak(device_name: str) -> Peak | None:
    """None for a card that the table does not have."""
    text = resources.files("pixpod_bench").joinpath("floors.toml").read_text(encoding="utf-8")
    peaks = (Peak(**row) for row in tomllib.loads(text)["cards"])
    return next((peak for peak in peaks if _is_card(peak.card, device_name)), None)


def step_work(model: str, size_px: int, text_tokens: int | None, rows: int) -> Work | None:
    """Of `rows` rows, those of guidance among them; None for a model or size not counted."""
    if model in ("flux-dev", "flux-schnell"):
        share = (size_px * size_px / 256 + (text_tokens or 0)) / _FULL_TOKENS
        return Work(
            linear=_FLUX_LINEAR * share * rows, attention=_FLUX_ATTENTION * share * share * rows
        )
    of_row = _UNET_ROW.get((model, size_px))
    return Work(linear=of_row * rows, attention=0.0) if of_row else None


def _is_card(card: str, device_name: str) -> bool:
    """`H200` is no GH200, and `A100` no A1000."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(card)}(?![0-9])", device_name) is not None
