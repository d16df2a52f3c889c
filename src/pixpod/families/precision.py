"""Number formats in which a model's weights are stored and computed."""

from enum import StrEnum


class Precision(StrEnum):
    """Number format of the denoiser; all other components stay 16-bit or wider.

    The 8-bit ones are torchao's: `dynamic` quantizes activations as they come and computes in 8
    bits, `weight_only` computes in bfloat16 and saves memory only.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_DYNAMIC = "float8_dynamic"
    FLOAT8_WEIGHT_ONLY = "float8_weight_only"
    INT8_DYNAMIC = "int8_dynamic"

    @property
    def is_8_bit(self) -> bool:
        return self in (
            Precision.FLOAT8_DYNAMIC,
            Precision.FLOAT8_WEIGHT_ONLY,
            Precision.INT8_DYNAMIC,
        )


STORED_PRECISIONS = (
    Precision.FLOAT32,
    Precision.BFLOAT16,
    Precision.FLOAT16,
    Precision.FLOAT8_DYNAMIC,
)
"""Formats that a denoiser's files may have; the others are made from these at load time."""
