"""What is measured, as a table. Imports no torch."""

from dataclasses import dataclass, replace

from pixpod.catalog import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model as it is built once for several scenarios."""

    model: str
    precision: Precision
    compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row: square images of one prompt, `batch` seeds at once."""

    variant: Variant
    size_px: int
    batch: int
    num_inference_steps: int

    @property
    def name(self) -> str:
        mode = "compiled" if self.variant.compiled else "eager"
        size = f"{self.size_px}px x{self.batch}"
        return f"{self.variant.model} {self.variant.precision} {mode} {size}"

    @property
    def baseline(self) -> "Scenario":
        """What its speed is compared with: the same work in bfloat16, eager."""
        variant = replace(self.variant, precision=Precision.BFLOAT16, compiled=False)
        return replace(self, variant=variant)


def _scenarios(
    variants: tuple[Variant, ...], size_px: int, batches: tuple[int, ...], num_inference_steps: int
) -> tuple[Scenario, ...]:
    return tuple(
        Scenario(
            variant=variant, size_px=size_px, batch=batch, num_inference_steps=num_inference_steps
        )
        for variant in variants
        for batch in batches
    )


def _variants(model: str, *precisions: Precision, compiled: bool = False) -> tuple[Variant, ...]:
    return tuple(
        Variant(model=model, precision=precision, compiled=compiled) for precision in precisions
    )


_BOTH = (Precision.BFLOAT16, Precision.FLOAT8_DYNAMIC)

FULL_SIZE = (
    *_scenarios(_variants("flux-dev", *_BOTH), 1024, (1, 2), 8),
    *_scenarios(_variants("sdxl", Precision.BFLOAT16, Precision.FLOAT16), 1024, (1, 4), 12),
    *_scenarios(_variants("flux-dev", *_BOTH, compiled=True), 1024, (1, 2), 8),
)
"""Fits a card of 80 GB: variants are built one after the other, never two at a time."""

TINY = (
    *_scenarios(_variants("flux-tiny", *_BOTH), 64, (1, 2), 2),
    *_scenarios(_variants("sdxl-tiny", Precision.BFLOAT16, Precision.FLOAT32), 64, (1,), 2),
    *_scenarios(_variants("flux-tiny", *_BOTH, compiled=True), 64, (1,), 2),
)
"""The same path in seconds, also on a CPU; its figures say nothing about speed."""
