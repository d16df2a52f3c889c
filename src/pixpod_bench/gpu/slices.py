"""Tables of the scenarios that are measured on a GPU, in slices, the most important slice first.

Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from pixpod.families import Precision
from pixpod_bench.gpu.scenarios import (
    AnyScenario,
    LoadScenario,
    MemoryScenario,
    Mode,
    Scenario,
    Served,
    Side,
    Stack,
    StackScenario,
    Variant,
)

SLICES: Mapping[str, str] = {
    "flux": "FLUX as it is served, beside diffusers",
    "sdxl": "SDXL as it is served, beside diffusers",
    "memory": "FLUX and SDXL on one GPU, and within 24 GB of it",
    "load": "mixed requests at random times, with and without batching",
    "unets": "SD 1.5 and SDXL over batch sizes and ways to run",
    "stacks": "LoRAs, ControlNets, given and shown images, refiners, beside plain images",
}


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
    ranks: tuple[int, ...] = (16, 64, 128)
    stacked_sd15_px: int = 768


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
    ranks=(4, 8),
    stacked_sd15_px=64,
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
        "stacks": _stacks(scale),
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


def _stacks(scale: Scale) -> Iterator[StackScenario]:
    """Yield each model's plain images first: the others are compared with them."""
    first, *others = scale.ranks
    all_four = Stack(loras=(1, 1, 1, 1), rank=first)
    num_refiner = scale.sdxl_steps // 3
    studio = Stack(loras=(3,), rank=first, nets=("canny",), refiner_steps=num_refiner)
    sdxl = Variant(
        side=Side.OURS, model=scale.sdxl, precision=scale.unet_precision, mode=Mode.COMPILED
    )
    for stack in (
        Stack(),
        Stack(loras=(1,), rank=first),
        Stack(loras=(4,), rank=first),
        Stack(nets=("canny",)),
        Stack(nets=("canny", "depth")),
        Stack(strength=0.6),
        Stack(num_images=1),
        Stack(refiner_steps=num_refiner),
        studio,
        replace(studio, loras=(8,), nets=("canny", "depth"), num_images=1),
    ):
        yield _stack(sdxl, stack, scale.sizes_px[0], 1, scale.sdxl_steps)
    for stack, is_alone in (
        (Stack(), False),
        (all_four, False),
        (all_four, True),
        (replace(studio, loras=(3, 3, 3, 3)), False),
    ):
        yield _stack(sdxl, stack, scale.sizes_px[0], 4, scale.sdxl_steps, is_alone=is_alone)
    flux = Variant(side=Side.OURS, model=scale.flux, precision=_FLOAT8, mode=Mode.COMPILED)
    tokens = scale.flux_tokens
    for stack in (
        Stack(),
        *(Stack(loras=(1,), rank=rank) for rank in (first, *others)),
        Stack(nets=("canny",)),
        Stack(strength=0.6),
        Stack(num_images=1),
    ):
        yield _stack(flux, stack, scale.sizes_px[0], 1, scale.flux_steps, tokens=tokens)
    for stack in (Stack(), all_four):
        yield _stack(flux, stack, scale.sizes_px[-1], 4, scale.flux_steps, tokens=tokens)
    sd15 = replace(sdxl, model=scale.sd15)
    for stack in (Stack(), Stack(loras=(1, 1, 1, 1, 1, 0, 0, 0), rank=first)):
        yield _stack(sd15, stack, scale.stacked_sd15_px, 8, scale.sd15_steps)


def _stack(
    variant: Variant,
    stack: Stack,
    size_px: int,
    batch_size: int,
    steps: int,
    *,
    tokens: int | None = None,
    is_alone: bool = False,
) -> StackScenario:
    return StackScenario(
        variant=variant,
        stack=stack,
        size_px=size_px,
        batch_size=batch_size,
        num_inference_steps=steps,
        text_tokens=tokens,
        is_alone=is_alone,
    )
