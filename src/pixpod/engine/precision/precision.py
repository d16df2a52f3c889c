"""What a model runs in. POLICY, values only: how it is stored, where it runs, what was asked for.

Knows no tensor. Seconds behind the choices are in `gpus.toml`.
"""

from dataclasses import dataclass

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.precision.gpus import Card
from pixpod.errors import DeviceUnavailable, InvalidInput, ModelUnavailable, Problem
from pixpod.job import Quality

GIB = 2**30

WORKING_BYTES = 4 * GIB
"""What a FLUX model needs beside its denoiser and T5, which can be parked: one image of 1024 px
with its decoding 2.4 GiB, CUDA and its libraries up to 1.0, CLIP and VAE 0.4 (diffusers-torchao's
table of an H100, sizes of tensors)."""

T5_FLOAT8_UP_TO_BYTES = 24 * GIB
"""Cards on which FLUX's large text encoder is held in float8: 4.6 instead of 8.9 GiB, where the
denoiser needs 11.1 in float8 itself. LPIPS 0.039 for T5 alone in FP8 (vllm-omni#3997)."""

MIN_TURBO_STEPS = 8
"""A model that draws in fewer steps changes too much in each for one to be left out."""

FLOAT8 = Precision.FLOAT8_DYNAMIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How a model's files hold it. `denoiser` is None for 16 bits or wider, as a repository has
    it; `denoiser_bytes` is the size of its files.
    """

    denoiser: Precision | None = None
    denoiser_bytes: int = 0
    is_t5_float8: bool = False

    @property
    def is_float8(self) -> bool:
        return self.denoiser is FLOAT8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a model is to run. `card` is None on a CPU; `memory_bytes` None if it is no matter.

    `has_float8` tells whether products by rows in FP8 work there; a CPU computes them slowly.
    """

    card: Card | None = None
    memory_bytes: int | None = None
    has_float8: bool = True

    @property
    def kind(self) -> str:
        """As a model's `precision` names it."""
        return "cpu" if self.card is None else "cuda"

    @property
    def attention(self) -> str:
        """Backend of diffusers for a denoiser there."""
        return "native" if self.card is None else self.card.attention

    def holds(self, size_bytes: int) -> bool:
        """Whether a denoiser of this size fits, with what must be there beside it."""
        return self.memory_bytes is None or size_bytes + WORKING_BYTES <= self.memory_bytes


def limit_bytes(has_bytes: int, limit_gib: float | None) -> int:
    """What may be used of a card's memory; a limit of None is all of it."""
    return has_bytes if limit_gib is None else min(has_bytes, round(limit_gib * GIB))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a model runs in. `t5` is None where it stays as it is stored.

    `is_dequantized`: 16-bit weights that were made of float8. `is_streamed`: the denoiser is
    converted on its way to the card, because the card cannot hold both at once.
    """

    precision: Precision
    t5: Precision | None = None
    is_dequantized: bool = False
    is_streamed: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As a reply names it."""
        return f"{self.precision} (from float8)" if self.is_dequantized else self.precision.value


def offered_qualities(
    spec: ModelSpec, stored: Precision | None, asked: Precision | None
) -> tuple[Quality, ...]:
    """What a request for this model may choose from, known without a card.

    `stored` is what a manifest says of the denoiser, `asked` the deployment's PIXPOD_PRECISION.
    A deployment that asks for 8 bits has decided; nothing in float8 is called 16-bit.
    """
    is_16_bit = stored is not FLOAT8 and not (asked and asked.is_8_bit)
    offered = {
        Quality.MAX: is_16_bit,
        Quality.DEFAULT: True,
        Quality.TURBO: spec.family is Family.FLUX
        and spec.defaults.num_inference_steps >= MIN_TURBO_STEPS,
    }
    return tuple(quality for quality, is_there in offered.items() if is_there)


def choose_precision(
    spec: ModelSpec,
    stored: Stored,
    place: Place,
    *,
    quality: Quality = Quality.DEFAULT,
    asked: Precision | None = None,
    is_compiling: bool = False,
) -> Choice:
    """`asked` is the deployment's PIXPOD_PRECISION, None for what suits the place.

    Raises:
        DeviceUnavailable: another card, or any card at all, could do it.
        ModelUnavailable: no card can, or it does not fit on this one.
        InvalidInput: this quality cannot be had here.
    """
    if spec.requires_cuda and place.card is None:
        raise DeviceUnavailable(f"{spec.name} runs on CUDA only, and this worker has no card")
    if spec.family is not Family.FLUX:
        return _choose_unet(spec, place, asked)
    chosen = _choose_denoiser(spec, stored, place, quality, asked, is_compiling)
    t5 = _choose_t5(stored, place)
    warnings = list(place.card.cautions) if place.card else []
    warnings += _warnings(chosen, place, is_compiling)
    if quality is Quality.MAX and t5 is not None:
        warnings.append(f"the text encoder T5 runs in {t5}: this card is too small for 16 bits")
    run_bytes = _bytes_in(chosen, stored)
    is_changed = stored.is_float8 != chosen.is_8_bit
    return Choice(
        precision=chosen,
        t5=t5,
        is_dequantized=stored.is_float8 and not chosen.is_8_bit,
        is_streamed=is_changed and not place.holds(stored.denoiser_bytes + run_bytes),
        warnings=tuple(warnings),
    )


def _choose_unet(spec: ModelSpec, place: Place, asked: Precision | None) -> Choice:
    """FP8 gains 1.1 to 1.4 times at most on these (TensorRT's figures for SDXL): all 16-bit."""
    precision = asked or spec.precision.get(place.kind, Precision.BFLOAT16)
    if precision.is_8_bit:
        raise ModelUnavailable(f"{spec.name} cannot run in {precision}: only FLUX models can")
    return Choice(precision=precision, warnings=place.card.cautions if place.card else ())


def _choose_denoiser(
    spec: ModelSpec,
    stored: Stored,
    place: Place,
    quality: Quality,
    asked: Precision | None,
    is_compiling: bool,
) -> Precision:
    if quality is Quality.MAX:
        return _choose_max(spec, stored, place, asked)
    if asked is not None:
        return _check_asked(spec, stored, place, asked)
    if place.card is None:
        return FLOAT8 if stored.is_float8 else spec.precision.get("cpu", Precision.BFLOAT16)
    wanted = place.card.compiled if is_compiling else place.card.eager
    if stored.is_float8 and wanted is Precision.INT8_DYNAMIC:
        wanted = _wide(spec, place)  # a second rounding on top of the first
    if wanted is FLOAT8 and not place.has_float8:
        wanted = _wide(spec, place)
    if wanted.is_8_bit or place.holds(_bytes_in(wanted, stored)):
        return wanted
    return FLOAT8 if place.has_float8 else Precision.FLOAT8_WEIGHT_ONLY


def _choose_max(
    spec: ModelSpec, stored: Stored, place: Place, asked: Precision | None
) -> Precision:
    wide = asked or _wide(spec, place)
    if Quality.MAX not in offered_qualities(spec, stored.denoiser, asked):
        held = f"baked in {stored.denoiser}" if stored.is_float8 else f"set to {asked}"
        raise _no_max(f"{spec.name} is {held} here")
    if not place.holds(_bytes_in(wide, stored)):
        raise _no_max(f"{spec.name} in {wide} does not fit on this card")
    return wide


def _check_asked(spec: ModelSpec, stored: Stored, place: Place, asked: Precision) -> Precision:
    can_have = (FLOAT8, Precision.FLOAT8_WEIGHT_ONLY)
    if stored.is_float8 and asked not in can_have:
        raise ModelUnavailable(
            f"{spec.name} is baked in {FLOAT8} and cannot run in {asked}: bake it so, or leave "
            "the choice to the worker (PIXPOD_PRECISION)"
        )
    if asked is FLOAT8 and place.card and not place.has_float8:
        raise DeviceUnavailable(
            f"{spec.name} in {asked} needs a card with FP8 by rows (compute capability 8.9 or "
            f"higher: Ada, Hopper, Blackwell), and this one is {place.card.name}: choose other "
            "cards, or leave the choice to the worker (PIXPOD_PRECISION)"
        )
    if not place.holds(_bytes_in(asked, stored)):
        needed = (_bytes_in(asked, stored) + WORKING_BYTES) / GIB
        raise ModelUnavailable(
            f"{spec.name} in {asked} needs about {needed:.0f} GiB, more than this card has: bake "
            f"it in {FLOAT8}, or choose other cards"
        )
    return asked


def _choose_t5(stored: Stored, place: Place) -> Precision | None:
    if place.card is None or (stored.is_t5_float8 and place.has_float8):
        return None
    is_small = place.memory_bytes is not None and place.memory_bytes <= T5_FLOAT8_UP_TO_BYTES
    if is_small:
        return FLOAT8 if place.has_float8 else Precision.FLOAT8_WEIGHT_ONLY
    return Precision.BFLOAT16 if stored.is_t5_float8 else None


def _warnings(chosen: Precision, place: Place, is_compiling: bool) -> list[str]:
    if place.card is None:
        return []
    if chosen is Precision.FLOAT8_WEIGHT_ONLY:
        return [f"{chosen} saves memory only: it is slower than bfloat16, which does not fit"]
    is_faster_wide = not place.card.eager.is_8_bit
    if chosen.is_8_bit and is_faster_wide and not is_compiling:
        return [f"{chosen} runs eagerly, which is slower than bfloat16"]
    return []


def _wide(spec: ModelSpec, place: Place) -> Precision:
    """The model's own 16-bit type there."""
    default = spec.precision.get(place.kind, Precision.BFLOAT16)
    return Precision.BFLOAT16 if default.is_8_bit else default


def _bytes_in(precision: Precision, stored: Stored) -> int:
    """The denoiser's size in another precision, as a multiple of what is stored."""
    stored_width = 1 if stored.is_float8 else 2
    width = 1 if precision.is_8_bit else 4 if precision is Precision.FLOAT32 else 2
    return stored.denoiser_bytes * width // stored_width


def _no_max(reason: str) -> InvalidInput:
    return InvalidInput(
        [
            Problem(
                field="quality",
                value=Quality.MAX.value,
                accepted=f"another quality: {reason}",
                hint="leave it out",
            )
        ]
    )
