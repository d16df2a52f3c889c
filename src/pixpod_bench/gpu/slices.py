"""Tables of the scenarios that are measured on a GPU, in slices, the most important slice first.

Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from pixpod.families import Precision

SLICES: Mapping[str, str] = {
    "flux": "FLUX as it is served, beside diffusers",
    "sdxl": "SDXL as it is served, beside diffusers",
    "memory": "FLUX and SDXL on one GPU, and within 24 GB of it",
    "load": "mixed requests at random times, with and without batching",
    "unets": "SD 1.5 and SDXL over batch sizes and ways to run",
}


class Side(StrEnum):
    """The code that generates: pixpod, or diffusers as its documentation describes."""

    OURS = "pixpod"
    STOCK = "diffusers"


class Mode(StrEnum):
    """The way in which the denoiser runs.

    COMPILED: by pixpod's recipe, or as diffusers' documentation compiles it. GRAPHS: UNets as a
    whole, for each size by itself, with torch's own CUDA graphs (`reduce-overhead`).
    """

    EAGER = "eager"
    COMPILED = "compiled"
    GRAPHS = "graphs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model as it is built once for several scenarios."""

    side: Side
    model: str
    precision: Precision
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.side} {self.model} {self.precision} {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One batch of square images of one prompt.

    `text_tokens` are T5's, None for UNets. Without `has_guidance` the guidance scale is 0, as
    distilled UNets are called.
    """

    variant: Variant
    size_px: int
    batch_size: int
    num_inference_steps: int
    text_tokens: int | None = None
    has_guidance: bool = True

    expected_s = 60.0
    """Expected time on an H100 with building and compiling the model, for the deadline."""

    @property
    def name(self) -> str:
        text = f" {self.text_tokens} tokens" if self.text_tokens else ""
        guidance = "" if self.has_guidance else " no guidance"
        size = f"{self.size_px}px x{self.batch_size} {self.num_inference_steps} steps"
        return f"{self.variant.name} {size}{text}{guidance}"


Served = tuple[tuple[str, Precision], ...]
"""Models that one engine serves, with their precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScenario:
    """Mixed requests through a whole engine; `limit_gib` is the GPU memory that it may use."""

    served: Served
    num_requests: int
    sizes_px: tuple[int, ...]
    limit_gib: float | None = None

    expected_s = 300.0

    @property
    def name(self) -> str:
        models = " + ".join(f"{model} {precision}" for model, precision in self.served)
        limit = f" within {self.limit_gib:g} GiB" if self.limit_gib else ""
        return f"memory of {models}{limit}"


Kind = tuple[str, int, int]
"""Model, size in pixels, steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadScenario:
    """Requests at random times, at `loads` times the engine's rate for requests one by one."""

    served: Served
    kinds: tuple[Kind, ...]
    loads: tuple[float, ...]
    num_requests: int

    expected_s = 360.0

    @property
    def name(self) -> str:
        return f"mixed load of {' + '.join(model for model, _ in self.served)}"


AnyScenario = Scenario | MemoryScenario | LoadScenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Names, sizes, steps and batch sizes; the defaults are for a GPU of 80 GB.

    One variant is on the GPU at a time. An RTX 4090 shows 23.5 GiB.
    """

    flux: str = "flux-dev"
    schnell: str = "flux-schnell"
    sdxl: str = "sdxl"
    sd15: str = "sd15"
    sizes_px: tuple[int, ...] = (1024, 768, 512)
    sd15_size_px: int = 512
    flux_tokens: int = 512
    schnell_tokens: int = 256
    flux_steps: int = 28
    few_steps: int = 4
    sdxl_steps: int = 30
    sd15_steps: int = 50
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    unet_precision: Precision = Precision.FLOAT16
    num_memory: int = 200
    num_load: int = 40
    limit_gib: float = 23.5


FULL_SIZE = Scale()

TINY = Scale(
    flux="flux-tiny",
    schnell="flux-tiny",
    sdxl="sdxl-tiny",
    sd15="sd15-tiny",
    sizes_px=(64, 96),
    sd15_size_px=64,
    flux_tokens=64,
    schnell_tokens=48,
    flux_steps=3,
    few_steps=2,
    sdxl_steps=3,
    sd15_steps=3,
    batch_sizes=(1, 2),
    unet_precision=Precision.FLOAT32,
    num_memory=12,
    num_load=8,
    limit_gib=2.0,
)
"""A rehearsal of the same code in minutes, also on a CPU; its figures say nothing about speed."""

LOADS = (0.8, 1.2)

_FLOAT8, _BF16 = Precision.FLOAT8_DYNAMIC, Precision.BFLOAT16


def make_slices(scale: Scale) -> Mapping[str, tuple[AnyScenario, ...]]:
    """Return the scenarios of all slices, in the order of SLICES."""
    scenarios: Mapping[str, Iterator[AnyScenario]] = {
        "flux": _flux(scale),
        "sdxl": _sdxl(scale),
        "memory": _memory(scale),
        "load": _load(scale),
        "unets": _unets(scale),
    }
    return {name: tuple(scenarios[name]) for name in SLICES}


def _beside_stock(model: str, ours: Precision, stock: Precision) -> Iterator[Variant]:
    yield Variant(side=Side.OURS, model=model, precision=ours, mode=Mode.COMPILED)
    for mode in (Mode.EAGER, Mode.COMPILED):
        yield Variant(side=Side.STOCK, model=model, precision=stock, mode=mode)


def _flux(scale: Scale) -> Iterator[Scenario]:
    workloads = (
        (scale.flux, scale.flux_steps, scale.flux_tokens, (1,)),
        (scale.schnell, scale.few_steps, scale.schnell_tokens, (1, scale.batch_sizes[-1] // 2)),
    )
    for model, steps, tokens, batch_sizes in workloads:
        for variant in _beside_stock(model, _FLOAT8, _BF16):
            for batch_size in dict.fromkeys(batch_sizes):
                yield Scenario(
                    variant=variant,
                    size_px=scale.sizes_px[0],
                    batch_size=batch_size,
                    num_inference_steps=steps,
                    text_tokens=tokens,
                )


def _sdxl(scale: Scale) -> Iterator[Scenario]:
    batch_sizes = dict.fromkeys((1, scale.batch_sizes[-1] // 2))
    for variant in _beside_stock(scale.sdxl, scale.unet_precision, scale.unet_precision):
        for has_guidance, batch_size in product((True, False), batch_sizes):
            yield Scenario(
                variant=variant,
                size_px=scale.sizes_px[0],
                batch_size=batch_size,
                num_inference_steps=scale.sdxl_steps if has_guidance else scale.few_steps,
                has_guidance=has_guidance,
            )


def _unets(scale: Scale) -> Iterator[Scenario]:
    """Yield scenarios of SD 1.5 against diffusers, and batches of SDXL, whose own slice has the
    comparison.
    """
    models = (
        (scale.sd15, scale.sd15_size_px, scale.sd15_steps, tuple(Mode), tuple(Mode)[:2]),
        (scale.sdxl, scale.sizes_px[0], scale.sdxl_steps, (Mode.COMPILED, Mode.GRAPHS), ()),
    )
    for model, size_px, steps, our_modes, stock_modes in models:
        for side, modes in ((Side.OURS, our_modes), (Side.STOCK, stock_modes)):
            for mode, batch_size in product(modes, scale.batch_sizes):
                if side is Side.OURS or batch_size in (1, 4):
                    yield Scenario(
                        variant=Variant(
                            side=side, model=model, precision=scale.unet_precision, mode=mode
                        ),
                        size_px=size_px,
                        batch_size=batch_size,
                        num_inference_steps=steps,
                    )


def _served(scale: Scale) -> Served:
    return ((scale.flux, _FLOAT8), (scale.sdxl, scale.unet_precision))


def _memory(scale: Scale) -> Iterator[MemoryScenario]:
    for limit_gib in (None, scale.limit_gib):
        yield MemoryScenario(
            served=_served(scale),
            num_requests=scale.num_memory,
            sizes_px=scale.sizes_px,
            limit_gib=limit_gib,
        )


def _load(scale: Scale) -> Iterator[LoadScenario]:
    kinds = tuple(
        (model, size_px, steps)
        for model, all_steps in ((scale.flux, scale.flux_steps), (scale.sdxl, scale.sdxl_steps))
        for size_px in (scale.sizes_px[0], scale.sizes_px[-1])
        for steps in (scale.few_steps, all_steps)
    )
    yield LoadScenario(served=_served(scale), kinds=kinds, loads=LOADS, num_requests=scale.num_load)
