"""What scenarios draw with: random models, prepared as a worker prepares its own, or stock."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from pixpod.catalog import Catalog, Family, Precision
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.device import find_place
from pixpod.engine.execution.model_runner import Drawer
from pixpod.engine.execution.prompt_cache import PromptCache
from pixpod.engine.loading.components import DTYPE, Component
from pixpod.engine.loading.pipelines import LoadedModel, Pipeline
from pixpod.engine.memory.footprints import Footprints
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.attention import set_attention
from pixpod.engine.scheduling.request_queue import Part
from pixpod.errors import WorkerError
from pixpod.job import GenerationRequest
from pixpod_bench.drawing_times import Drawing
from pixpod_bench.measure import Subject
from pixpod_bench.random_models import build_random_model, build_random_vae
from pixpod_bench.recipes import QUANTIZE
from pixpod_bench.scenarios import Mode, Side, VaeScenario, Variant
from pixpod_bench.stock import StockDrawer, compile_stock
from pixpod_tools.bake.architectures import ARCHITECTURES


class OurDrawer:
    """Draws batches as the device's thread of a worker does; all parts stay on the device, and
    each text is encoded anew. `warnings` are those of preparing the model.
    """

    def __init__(self, model: LoadedModel, warnings: Callable[[], tuple[str, ...]]) -> None:
        self.model = model
        self._warnings = warnings
        self._drawer = new_drawer()

    def draw(self, request: GenerationRequest) -> Drawing:
        """Raises WorkerError."""
        started = time.perf_counter()
        part = Part(request=request, seeds=request.seeds)
        (drawn,) = self._drawer.draw(self.model, [part], lambda step: None)
        total_ms = (time.perf_counter() - started) * 1e3
        if isinstance(drawn, WorkerError):
            raise drawn
        return Drawing(
            text_encode_ms=drawn.timings_ms["text_encode"],
            denoise_ms=drawn.timings_ms["denoise"],
            decode_ms=drawn.timings_ms["decode"],
            total_ms=total_ms,
            pixels=tuple(image.pixels for image in drawn.images),
            warnings=tuple(dict.fromkeys((*drawn.warnings, *self._warnings()))),
        )


def new_drawer() -> Drawer:
    """For models of which no part is ever parked, and without cached embeddings."""
    return Drawer(Placement(make_plan((), None), Footprints().working_bytes), PromptCache(0))


def build(variant: Variant, catalog: Catalog, device: torch.device, compiled_dir: Path) -> Subject:
    """A variant, ready to be drawn with. `compiled_dir` may hold packages for ours."""
    architecture, spec = ARCHITECTURES[variant.model], catalog[variant.model]
    quantize = QUANTIZE[variant.recipe] if variant.precision is Precision.FLOAT8_DYNAMIC else None
    model = build_random_model(architecture, spec, variant.precision, device, quantize)
    if variant.side is Side.STOCK:
        if variant.mode is not Mode.EAGER:
            compile_stock(model)
        return StockDrawer(model)
    warnings: tuple[str, ...] = ()
    if spec.family is Family.FLUX:
        backend = variant.attention or find_place(device).attention
        warnings = set_attention(model.pipe.transformer, backend, device)
    if variant.mode is Mode.COMPILED:
        compilation = compile_model(model, CompiledStore(compiled_dir))
        return OurDrawer(model, lambda: (*warnings, *compilation.warnings))
    if variant.mode is Mode.PER_SIZE:
        model.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    if variant.mode is Mode.GRAPHS:
        _record_graphs(model.pipe)
    return OurDrawer(model, lambda: warnings)


def build_vae(scenario: VaeScenario, device: torch.device) -> Component:
    """Alone, as it decodes in a pipeline."""
    torch.manual_seed(0)
    vae = build_random_vae(ARCHITECTURES[scenario.model], device, DTYPE[scenario.precision])
    if scenario.channels_last:
        vae.to(memory_format=torch.channels_last)
    if scenario.compiled:
        vae.decoder.compile(fullgraph=True)
    return vae


def _record_graphs(pipe: Pipeline) -> None:
    """A UNet for each size by itself, all its launches recorded as one."""
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)
    pipe.unet.compile(mode="reduce-overhead", fullgraph=True)
