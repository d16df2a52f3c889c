"""Chooses the precision of a model from its checkpoint, the hardware and the settings.

Values only, no tensor. The measurements behind the choices are in `gpus.toml`.
"""

from dataclasses import dataclass

from pixpod.catalog import ModelSpec
from pixpod.errors import DeviceUnavailable, InvalidInput, ModelUnavailable, Problem
from pixpod.families import GIB, Precision
from pixpod.gpus import GpuClass
from pixpod.job import Quality
from pixpod.weights.layout import CheckpointInfo

WORKING_BYTES = 4 * GIB
"""Memory for FLUX beside its denoiser and T5, which can be offloaded: 2.4 GiB for one image of
1024 px with its decoding, up to 1.0 for CUDA and its libraries, 0.4 for CLIP and VAE
(diffusers-torchao's table of an H100, sizes of tensors)."""

T5_FLOAT8_UP_TO_BYTES = 24 * GIB
"""GPUs on which FLUX's large text encoder is held in float8: 4.6 instead of 8.9 GiB, where the
denoiser needs 11.1 in float8 itself. LPIPS 0.039 for T5 alone in FP8 (vllm-omni#3997)."""

MIN_TURBO_STEPS = 8
"""Fewest steps for `turbo`: with fewer, each step changes an image too much to be skipped."""

FLOAT8 = Precision.FLOAT8_DYNAMIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Device that models run on. `gpu` is None on a CPU; `memory_bytes` is None if memory is not
    limited.

    `has_float8`: FP8 products with a scale per row work there; a CPU computes them slowly.
    """

    gpu: GpuClass | None = None
    memory_bytes: int | None = None
    has_float8: bool = True

    @property
    def kind(self) -> str:
        """The device type under which a model's `precision` has its default."""
        return "cpu" if self.gpu is None else "cuda"

    @property
    def attention(self) -> str:
        """Backend of diffusers for a denoiser there."""
        return "native" if self.gpu is None else self.gpu.attention

    def holds(self, size_bytes: int) -> bool:
        """Return whether a denoiser of this size fits with WORKING_BYTES beside it."""
        return self.memory_bytes is None or size_bytes + WORKING_BYTES <= self.memory_bytes


def limit_bytes(has_bytes: int, limit_gib: float | None) -> int:
    """Return the memory of a GPU that may be used; a limit of None means all of it."""
    return has_bytes if limit_gib is None else min(has_bytes, round(limit_gib * GIB))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """Formats of a model's components in memory.

    `t5` is the large text encoder's, None to keep that of its files; `adaln` is that of the layers
    that modulate each block, and matters in 8 bits only. `is_dequantized`: 16-bit weights are made
    from float8. `is_streamed`: the denoiser is converted on its way to the GPU, where both forms do
    not fit.
    """

    precision: Precision
    t5: Precision | None = None
    adaln: Precision = Precision.FLOAT8_DYNAMIC
    is_dequantized: bool = False
    is_streamed: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def wide_precision(self) -> Precision:
        """The format of components that are never in 8 bits."""
        return Precision.BFLOAT16 if self.precision.is_8_bit else self.precision

    @property
    def label(self) -> str:
        """The denoiser's format under the name that a reply gives it."""
        return f"{self.precision} (from float8)" if self.is_dequantized else self.precision.value


def offered_qualities(
    spec: ModelSpec, checkpoint: Precision | None, requested: Precision | None
) -> tuple[Quality, ...]:
    """Return the qualities that requests for this model may name, known without a GPU.

    `checkpoint` is the denoiser's precision by its manifest, `requested` the deployment's
    PIXPOD_PRECISION. `max` needs 16 bits: it is not offered if either of them is an 8-bit format.
    """
    is_16_bit = checkpoint is not FLOAT8 and not (requested and requested.is_8_bit)
    offered = {
        Quality.MAX: is_16_bit,
        Quality.DEFAULT: True,
        Quality.TURBO: bool(spec.family.step_cache_blocks)
        and spec.defaults.num_inference_steps >= MIN_TURBO_STEPS,
    }
    return tuple(quality for quality, is_there in offered.items() if is_there)


def choose_precision(
    spec: ModelSpec,
    checkpoint: CheckpointInfo,
    hardware: Hardware,
    *,
    quality: Quality = Quality.DEFAULT,
    requested: Precision | None = None,
    is_compiling: bool = False,
) -> QuantizationPlan:
    """Choose the formats of a model's components.

    `requested` is the deployment's PIXPOD_PRECISION, None for the one that suits the hardware.

    Raises:
        DeviceUnavailable: this GPU cannot run the precision, another one could.
        ModelUnavailable: no GPU can run it, or it does not fit on this one.
        InvalidInput: this quality is not available here.
    """
    if spec.requires_cuda and hardware.gpu is None:
        raise DeviceUnavailable(f"{spec.name} runs on CUDA only, and this worker has no GPU")
    if spec.quantization is None:
        return _choose_unquantized(spec, checkpoint, hardware, requested)
    chosen = _choose_denoiser(spec, checkpoint, hardware, quality, requested, is_compiling)
    t5 = _choose_t5(checkpoint, hardware) if spec.family.large_text_encoder else None
    warnings = list(hardware.gpu.cautions) if hardware.gpu else []
    warnings += _warnings(chosen, hardware, is_compiling)
    if quality is Quality.MAX and t5 is not None:
        warnings.append(f"the text encoder T5 runs in {t5}: this GPU is too small for 16 bits")
    run_bytes = _bytes_in(chosen, checkpoint)
    is_changed = checkpoint.is_float8 != chosen.is_8_bit
    return QuantizationPlan(
        precision=chosen,
        t5=t5,
        is_dequantized=checkpoint.is_float8 and not chosen.is_8_bit,
        is_streamed=is_changed and not hardware.holds(checkpoint.denoiser_bytes + run_bytes),
        warnings=tuple(warnings),
    )


def _choose_unquantized(
    spec: ModelSpec,
    checkpoint: CheckpointInfo,
    hardware: Hardware,
    requested: Precision | None,
) -> QuantizationPlan:
    """Choose the format of a denoiser that is not quantized. For UNets, FP8 would be 1.1 to 1.4
    times as fast at most (TensorRT's figures for SDXL).
    """
    precision = requested or spec.precision.get(hardware.kind, Precision.BFLOAT16)
    if precision.is_8_bit:
        who = "the model" if spec.keeps_16_bit else "its family"
        raise ModelUnavailable(f"{spec.name} cannot run in {precision}: {who} is not quantized")
    if checkpoint.is_float8:
        raise ModelUnavailable(
            f"{spec.name} is baked in {checkpoint.denoiser}: bake it in {precision}"
        )
    return QuantizationPlan(
        precision=precision, warnings=hardware.gpu.cautions if hardware.gpu else ()
    )


def _choose_denoiser(
    spec: ModelSpec,
    checkpoint: CheckpointInfo,
    hardware: Hardware,
    quality: Quality,
    requested: Precision | None,
    is_compiling: bool,
) -> Precision:
    if quality is Quality.MAX:
        return _choose_max(spec, checkpoint, hardware, requested)
    if requested is not None:
        return _check_requested(spec, checkpoint, hardware, requested)
    if hardware.gpu is None:
        return FLOAT8 if checkpoint.is_float8 else spec.precision.get("cpu", Precision.BFLOAT16)
    wanted = hardware.gpu.compiled if is_compiling else hardware.gpu.eager
    if checkpoint.is_float8 and wanted is Precision.INT8_DYNAMIC:
        wanted = _half_precision(spec, hardware)  # a second rounding on top of the first
    if wanted is FLOAT8 and not hardware.has_float8:
        wanted = _half_precision(spec, hardware)
    if wanted.is_8_bit or hardware.holds(_bytes_in(wanted, checkpoint)):
        return wanted
    return FLOAT8 if hardware.has_float8 else Precision.FLOAT8_WEIGHT_ONLY


def _choose_max(
    spec: ModelSpec, checkpoint: CheckpointInfo, hardware: Hardware, requested: Precision | None
) -> Precision:
    chosen = requested or _half_precision(spec, hardware)
    if Quality.MAX not in offered_qualities(spec, checkpoint.denoiser, requested):
        held = f"baked in {checkpoint.denoiser}" if checkpoint.is_float8 else f"set to {requested}"
        raise _no_max(f"{spec.name} is {held} here")
    if not hardware.holds(_bytes_in(chosen, checkpoint)):
        raise _no_max(f"{spec.name} in {chosen} does not fit on this GPU")
    return chosen


def _check_requested(
    spec: ModelSpec, checkpoint: CheckpointInfo, hardware: Hardware, requested: Precision
) -> Precision:
    can_have = (FLOAT8, Precision.FLOAT8_WEIGHT_ONLY)
    if checkpoint.is_float8 and requested not in can_have:
        raise ModelUnavailable(
            f"{spec.name} is baked in {FLOAT8} and cannot run in {requested}: bake it so, or leave "
            "the choice to the worker (PIXPOD_PRECISION)"
        )
    if requested is FLOAT8 and hardware.gpu and not hardware.has_float8:
        raise DeviceUnavailable(
            f"{spec.name} in {requested} needs a GPU with row-wise FP8 (compute capability 8.9 or "
            f"higher: Ada, Hopper, Blackwell), and this one is {hardware.gpu.name}: choose another "
            "GPU, or leave the choice to the worker (PIXPOD_PRECISION)"
        )
    if not hardware.holds(_bytes_in(requested, checkpoint)):
        needed = (_bytes_in(requested, checkpoint) + WORKING_BYTES) / GIB
        raise ModelUnavailable(
            f"{spec.name} in {requested} needs about {needed:.0f} GiB, more than this GPU has: "
            f"bake it in {FLOAT8}, or choose another GPU"
        )
    return requested


def _choose_t5(checkpoint: CheckpointInfo, hardware: Hardware) -> Precision | None:
    if hardware.gpu is None or (checkpoint.is_t5_float8 and hardware.has_float8):
        return None
    is_small = hardware.memory_bytes is not None and hardware.memory_bytes <= T5_FLOAT8_UP_TO_BYTES
    if is_small:
        return FLOAT8 if hardware.has_float8 else Precision.FLOAT8_WEIGHT_ONLY
    return Precision.BFLOAT16 if checkpoint.is_t5_float8 else None


def _warnings(chosen: Precision, hardware: Hardware, is_compiling: bool) -> list[str]:
    if hardware.gpu is None:
        return []
    if chosen is Precision.FLOAT8_WEIGHT_ONLY:
        return [f"{chosen} saves memory only: it is slower than bfloat16, which does not fit"]
    is_16_bit_faster = not hardware.gpu.eager.is_8_bit
    if chosen.is_8_bit and is_16_bit_faster and not is_compiling:
        return [f"{chosen} runs eagerly, which is slower than bfloat16"]
    return []


def _half_precision(spec: ModelSpec, hardware: Hardware) -> Precision:
    """Return the model's own 16-bit type on this hardware."""
    default = spec.precision.get(hardware.kind, Precision.BFLOAT16)
    return Precision.BFLOAT16 if default.is_8_bit else default


def _bytes_in(precision: Precision, checkpoint: CheckpointInfo) -> int:
    """Return the size of the denoiser in another precision, from that of its files."""
    stored_width = 1 if checkpoint.is_float8 else 2
    width = 1 if precision.is_8_bit else 4 if precision is Precision.FLOAT32 else 2
    return checkpoint.denoiser_bytes * width // stored_width


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
