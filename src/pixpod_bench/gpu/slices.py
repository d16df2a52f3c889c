"""What is measured on a card: slices that each last a few minutes, as tables. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product

from pixpod.catalog import Precision
from pixpod_bench.slices import SLICES


class Side(StrEnum):
    """Whose code draws: ours, or diffusers as its documentation says."""

    OURS = "pixpod"
    STOCK = "diffusers"


class Mode(StrEnum):
    """How the denoiser runs. COMPILED: by our recipe, or as diffusers' documentation compiles it;
    PER_SIZE: FLUX by its blocks, for each size by itself; GRAPHS: UNets as a whole, for each size
    by itself, with torch's own CUDA graphs (`reduce-overhead`).
    """

    EAGER = "eager"
    COMPILED = "compiled"
    PER_SIZE = "per-size"
    GRAPHS = "graphs"


class Recipe(StrEnum):
    """How a FLUX transformer becomes FP8. PER_ROW: as it is served."""

    PER_ROW = "by rows"
    PER_TENSOR = "by tensors"
    ADALN_16 = "AdaLN in 16 bits"
    FUSED_QKV = "fused QKV"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model as it is built once for several scenarios.

    `attention` is a backend of diffusers; None for the one that the worker chooses, or diffusers'.
    `recipe` matters in FP8.
    """

    side: Side
    model: str
    precision: Precision
    mode: Mode = Mode.EAGER
    attention: str | None = None
    recipe: Recipe = Recipe.PER_ROW

    @property
    def name(self) -> str:
        attention = f" {self.attention}" if self.attention else ""
        recipe = "" if self.recipe is Recipe.PER_ROW else f" {self.recipe}"
        return f"{self.side} {self.model} {self.precision}{recipe} {self.mode}{attention}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row: square images of one prompt, `batch` seeds at once.

    `text_tokens` of T5, None for UNets; without `has_guidance` the scale is 0, as for distilled
    weights.
    """

    variant: Variant
    size_px: int
    batch: int
    num_inference_steps: int
    text_tokens: int | None = None
    has_guidance: bool = True

    @property
    def name(self) -> str:
        text = f" {self.text_tokens} tokens" if self.text_tokens else ""
        guidance = "" if self.has_guidance else " no guidance"
        size = f"{self.size_px}px x{self.batch} {self.num_inference_steps} steps"
        return f"{self.variant.name} {size}{text}{guidance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeScenario:
    """One way to decode latents of one size, without a pipeline around it."""

    model: str
    precision: Precision
    channels_last: bool
    compiled: bool
    size_px: int
    batch: int

    @property
    def name(self) -> str:
        layout = " channels-last" if self.channels_last else ""
        mode = Mode.COMPILED if self.compiled else Mode.EAGER
        size = f"{self.size_px}px x{self.batch}"
        return f"VAE of {self.model} {self.precision} {mode}{layout} {size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScenario:
    """`num_batches` of one drawing in a row, each decoded before the next or beside it."""

    drawing: Scenario
    num_batches: int

    @property
    def name(self) -> str:
        return f"{self.drawing.name}, {self.num_batches} in a row"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScenario:
    """Mixed requests through a whole engine; `limit_gib` is all of the card that it may use."""

    precisions: tuple[tuple[str, Precision], ...]
    num_requests: int
    sizes_px: tuple[int, ...]
    limit_gib: float | None = None

    @property
    def name(self) -> str:
        models = " + ".join(f"{model} {precision}" for model, precision in self.precisions)
        limit = f" within {self.limit_gib:g} GiB" if self.limit_gib else ""
        return f"memory of {models}{limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadScenario:
    """Requests that come at random times, at `loads` times what the engine can do one by one,
    with and without batching.

    Kinds are (model, size, steps), drawn evenly.
    """

    precisions: tuple[tuple[str, Precision], ...]
    kinds: tuple[tuple[str, int, int], ...]
    loads: tuple[float, ...]
    num_requests: int

    @property
    def name(self) -> str:
        return f"mixed load of {' + '.join(model for model, _ in self.precisions)}"


AnyScenario = Scenario | VaeScenario | OverlapScenario | MemoryScenario | LoadScenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Scenarios that are measured by one call."""

    name: str
    scenarios: tuple[AnyScenario, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What differs between a card and a rehearsal: names, sizes, steps, batches."""

    flux: str
    schnell: str
    sdxl: str
    sd15: str
    size_px: int
    flux_sizes_px: tuple[int, ...]
    sd15_size_px: int
    text_tokens: tuple[int, int]
    schnell_tokens: int
    flux_steps: int
    few_steps: int
    unet_steps: int
    sweep_steps: int
    batches: tuple[int, ...]
    unet_precision: Precision
    num_overlapped: int
    num_mixed: int
    num_load: int
    loads: tuple[float, ...]
    limit_gib: float


FULL_SIZE = Scale(
    flux="flux-dev",
    schnell="flux-schnell",
    sdxl="sdxl",
    sd15="sd15",
    size_px=1024,
    flux_sizes_px=(1024, 768, 512),
    sd15_size_px=512,
    text_tokens=(512, 256),
    schnell_tokens=256,
    flux_steps=28,
    few_steps=4,
    unet_steps=30,
    sweep_steps=8,
    batches=(1, 2, 4, 8),
    unet_precision=Precision.FLOAT16,
    num_overlapped=6,
    num_mixed=200,
    num_load=40,
    loads=(0.8, 1.2),
    limit_gib=23.5,
)
"""For a card of 80 GB: one variant is on it at a time. 23.5 GiB is what an RTX 4090 shows."""

TINY = Scale(
    flux="flux-tiny",
    schnell="flux-tiny",
    sdxl="sdxl-tiny",
    sd15="sd15-tiny",
    size_px=64,
    flux_sizes_px=(64, 96),
    sd15_size_px=64,
    text_tokens=(64, 48),
    schnell_tokens=48,
    flux_steps=3,
    few_steps=2,
    unet_steps=3,
    sweep_steps=2,
    batches=(1, 2),
    unet_precision=Precision.FLOAT32,
    num_overlapped=2,
    num_mixed=12,
    num_load=8,
    loads=(0.8, 1.2),
    limit_gib=2.0,
)
"""The same path in minutes, also on a CPU; its figures say nothing about speed."""

_FLOAT8, _BF16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16
_CUDNN, _NATIVE = "_native_cudnn", "native"


def make_slices(scale: Scale, *, has_cudnn: bool) -> tuple[Slice, ...]:
    """All slices in their order. cuDNN's attention needs CUDA."""
    scenarios: Mapping[str, Iterable[AnyScenario]] = {
        "flux": _flux(scale),
        "sdxl": _sdxl(scale),
        "memory": _memory(scale),
        "load": _load(scale),
        "flux-sweep": _flux_sweep(scale),
        "flux-ablation": _flux_ablation(scale, has_cudnn=has_cudnn),
        "flux-recipes": _flux_recipes(scale),
        "unets": _unets(scale),
        "vae": _vae(scale),
        "overlap": _overlap(scale),
    }
    return tuple(Slice(name=name, scenarios=tuple(scenarios[name])) for name in SLICES)


def _ours(model: str, precision: Precision, mode: Mode, attention: str | None = None) -> Variant:
    return Variant(side=Side.OURS, model=model, precision=precision, mode=mode, attention=attention)


def _stock(model: str, precision: Precision, mode: Mode) -> Variant:
    return Variant(side=Side.STOCK, model=model, precision=precision, mode=mode)


def _flux(scale: Scale) -> Iterator[Scenario]:
    works = (
        (scale.flux, scale.flux_steps, scale.text_tokens[0]),
        (scale.schnell, scale.few_steps, scale.schnell_tokens),
    )
    for model, steps, tokens in works:
        for variant in (
            _ours(model, _FLOAT8, Mode.COMPILED),
            _stock(model, _BF16, Mode.EAGER),
            _stock(model, _BF16, Mode.COMPILED),
        ):
            yield Scenario(
                variant=variant,
                size_px=scale.size_px,
                batch=1,
                num_inference_steps=steps,
                text_tokens=tokens,
            )


def _sdxl(scale: Scale) -> Iterator[Scenario]:
    precision = scale.unet_precision
    for variant in (
        _ours(scale.sdxl, precision, Mode.COMPILED),
        _stock(scale.sdxl, precision, Mode.EAGER),
        _stock(scale.sdxl, precision, Mode.COMPILED),
    ):
        for batch in (scale.batches[0], scale.batches[-1]):
            yield _unet(variant, scale.size_px, batch, scale.unet_steps)
        yield _unet(variant, scale.size_px, 1, scale.few_steps, has_guidance=False)


def _flux_sweep(scale: Scale) -> Iterator[Scenario]:
    """One model over all shapes: nothing may be compiled again but for the first of a kind."""
    variant = _ours(scale.flux, _FLOAT8, Mode.COMPILED)
    for size_px, tokens, batch in product(scale.flux_sizes_px, scale.text_tokens, scale.batches):
        if tokens == scale.text_tokens[0] or batch == 1:
            yield Scenario(
                variant=variant,
                size_px=size_px,
                batch=batch,
                num_inference_steps=scale.sweep_steps,
                text_tokens=tokens,
            )


def _flux_ablation(scale: Scale, *, has_cudnn: bool) -> Iterator[Scenario]:
    attentions = (_NATIVE, _CUDNN) if has_cudnn else (_NATIVE,)
    compared = product((_FLOAT8, _BF16), (Mode.COMPILED, Mode.EAGER), attentions)
    variants = [_ours(scale.flux, *each) for each in compared]
    for variant in (_ours(scale.flux, _FLOAT8, Mode.PER_SIZE), *variants):
        for size_px in (scale.flux_sizes_px[0], scale.flux_sizes_px[-1]):
            yield Scenario(
                variant=variant,
                size_px=size_px,
                batch=1,
                num_inference_steps=scale.sweep_steps,
                text_tokens=scale.text_tokens[0],
            )


def _flux_recipes(scale: Scale) -> Iterator[Scenario]:
    served = _ours(scale.flux, _FLOAT8, Mode.COMPILED)
    for recipe in Recipe:
        yield Scenario(
            variant=replace(served, recipe=recipe),
            size_px=scale.size_px,
            batch=1,
            num_inference_steps=scale.sweep_steps,
            text_tokens=scale.text_tokens[0],
        )


def _unets(scale: Scale) -> Iterator[Scenario]:
    precision = scale.unet_precision
    for model, size_px in ((scale.sd15, scale.sd15_size_px), (scale.sdxl, scale.size_px)):
        for mode in (Mode.EAGER, Mode.COMPILED, Mode.GRAPHS):
            for batch in scale.batches:
                yield _unet(_ours(model, precision, mode), size_px, batch, scale.unet_steps)
        if model == scale.sd15:
            for mode in (Mode.EAGER, Mode.COMPILED):
                yield _unet(_stock(model, precision, mode), size_px, 1, scale.unet_steps)


def _unet(
    variant: Variant, size_px: int, batch: int, steps: int, *, has_guidance: bool = True
) -> Scenario:
    return Scenario(
        variant=variant,
        size_px=size_px,
        batch=batch,
        num_inference_steps=steps,
        has_guidance=has_guidance,
    )


def _vae(scale: Scale) -> Iterator[VaeScenario]:
    ways = (
        (Precision.FLOAT32, False, False),
        (scale.unet_precision, False, False),
        (scale.unet_precision, True, False),
        (scale.unet_precision, True, True),
    )
    for precision, channels_last, compiled in dict.fromkeys(ways):
        for batch in (scale.batches[0], scale.batches[-1]):
            yield VaeScenario(
                model=scale.sdxl,
                precision=precision,
                channels_last=channels_last,
                compiled=compiled,
                size_px=scale.size_px,
                batch=batch,
            )


def _overlap(scale: Scale) -> Iterator[OverlapScenario]:
    """Few steps, where decoding is the largest part, and many in a full batch."""
    sdxl = _ours(scale.sdxl, scale.unet_precision, Mode.COMPILED)
    drawings = (
        _unet(sdxl, scale.size_px, 1, scale.few_steps, has_guidance=False),
        _unet(sdxl, scale.size_px, scale.batches[-1], scale.few_steps, has_guidance=False),
        _unet(sdxl, scale.size_px, scale.batches[-1], scale.unet_steps),
        Scenario(
            variant=_ours(scale.schnell, _FLOAT8, Mode.COMPILED),
            size_px=scale.size_px,
            batch=1,
            num_inference_steps=scale.few_steps,
            text_tokens=scale.schnell_tokens,
        ),
    )
    for drawing in drawings:
        yield OverlapScenario(drawing=drawing, num_batches=scale.num_overlapped)


def _memory(scale: Scale) -> Iterator[MemoryScenario]:
    for limit_gib in (None, scale.limit_gib):
        yield MemoryScenario(
            precisions=((scale.flux, _FLOAT8), (scale.sdxl, scale.unet_precision)),
            num_requests=scale.num_mixed,
            sizes_px=scale.flux_sizes_px,
            limit_gib=limit_gib,
        )


def _load(scale: Scale) -> Iterator[LoadScenario]:
    sizes_px = (scale.flux_sizes_px[0], scale.flux_sizes_px[-1])
    kinds = tuple(
        (model, size_px, steps)
        for model, full in ((scale.flux, scale.flux_steps), (scale.sdxl, scale.unet_steps))
        for size_px in sizes_px
        for steps in (scale.few_steps, full)
    )
    yield LoadScenario(
        precisions=((scale.flux, _FLOAT8), (scale.sdxl, scale.unet_precision)),
        kinds=kinds,
        loads=scale.loads,
        num_requests=scale.num_load,
    )
