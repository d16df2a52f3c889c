"""Scenarios to rows: builds each variant, draws with the engine's own code, keeps the medians."""

import gc
import logging
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torchao.quantization import Float8Tensor

from pixpod.baking.architectures import ARCHITECTURES
from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.base import CancelToken
from pixpod.engine.drawing import draw
from pixpod.engine.loading import LoadedModel
from pixpod.job import Generation, GenerationRequest
from pixpod_bench.random_models import build_random_model
from pixpod_bench.scenarios import Scenario, Variant

log = logging.getLogger(__name__)

PROMPT = "a red circle on a blue background"

STEP_TERAFLOP = {"flux-dev": 74.385, "sdxl": 13.522}
"""One step at 1024 px for one image: multiply-adds count as two. FLUX with 512 text tokens, SDXL
with classifier-free guidance (two rows). Counted with torch.utils.flop_counter.FlopCounterMode
over a forward of these denoisers on the meta device (torch 2.13, diffusers 0.42.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the repeats of one scenario; times in milliseconds for the whole batch.

    `spread_percent` is (slowest - fastest) / median of the total. None: not known for this
    device or size. `speedup` is of denoising, over the same work in bfloat16, eager.
    """

    scenario: str
    model: str
    precision: str
    compiled: bool
    size_px: int
    batch: int
    num_inference_steps: int
    repeats: int
    float8_layers: int
    build_ms: float
    first_ms: float
    text_encode_ms: float
    denoise_ms: float
    step_ms: float
    decode_ms: float
    total_ms: float
    spread_percent: float
    images_per_second: float
    same_pixels: bool
    weights_bytes: int | None
    peak_bytes: int | None
    teraflop_per_s: float | None
    speedup: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A scenario without figures, and why."""

    scenario: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often each scenario is drawn; no variant is begun after `deadline` (perf_counter)."""

    warmups: int
    repeats: int
    deadline: float | None


def measure_all(
    scenarios: Iterable[Scenario], catalog: Catalog, device: torch.device, pace: Pace
) -> Iterator[Row | Failure]:
    """One result per scenario, in their order; at most one variant is on the device."""
    denoise_ms: dict[Scenario, float] = {}
    for variant, group in groupby(scenarios, key=lambda scenario: scenario.variant):
        yield from _measure_variant(variant, tuple(group), catalog, device, pace, denoise_ms)
        _free_memory(device)


def _measure_variant(
    variant: Variant,
    scenarios: tuple[Scenario, ...],
    catalog: Catalog,
    device: torch.device,
    pace: Pace,
    denoise_ms: dict[Scenario, float],
) -> Iterator[Row | Failure]:
    """A failure costs its own variant's rows only: time on a card is dear."""
    remaining = list(scenarios)
    if pace.deadline is not None and time.perf_counter() > pace.deadline:
        yield from (Failure(scenario=s.name, reason="out of time") for s in remaining)
        return
    try:
        started = time.perf_counter()
        model = _build(variant, catalog, device)
        build_ms = (time.perf_counter() - started) * 1e3
        while remaining:
            yield _measure(model, remaining[0], pace, build_ms, denoise_ms)
            remaining.pop(0)
    except Exception as exc:
        log.exception("variant failed: %s", variant)
        reason = f"{type(exc).__name__}: {exc}".splitlines()[0]
        yield from (Failure(scenario=s.name, reason=reason) for s in remaining)


def _build(variant: Variant, catalog: Catalog, device: torch.device) -> LoadedModel:
    architecture = ARCHITECTURES[variant.model]
    model = build_random_model(architecture, catalog[variant.model], variant.precision, device)
    if variant.compiled:
        model.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    _synchronize(device)
    return model


def _measure(
    model: LoadedModel,
    scenario: Scenario,
    pace: Pace,
    build_ms: float,
    denoise_ms: dict[Scenario, float],
) -> Row:
    request = make_request(model.spec, scenario)
    weights_bytes = _allocated_bytes(model.device)
    first_ms, _ = _timed_draw(model, request)
    for _ in range(pace.warmups - 1):
        _timed_draw(model, request)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    drawn = [_timed_draw(model, request) for _ in range(pace.repeats)]
    totals = [total for total, _ in drawn]
    total = statistics.median(totals)
    phases = {
        phase: statistics.median(generation.timings_ms[phase] for _, generation in drawn)
        for phase in ("text_encode", "denoise", "decode")
    }
    denoise_ms[scenario] = phases["denoise"]
    step_ms = phases["denoise"] / scenario.num_inference_steps
    baseline_ms = denoise_ms.get(scenario.baseline)
    teraflop = STEP_TERAFLOP.get(scenario.variant.model) if scenario.size_px == 1024 else None
    return Row(
        scenario=scenario.name,
        model=scenario.variant.model,
        precision=scenario.variant.precision,
        compiled=scenario.variant.compiled,
        size_px=scenario.size_px,
        batch=scenario.batch,
        num_inference_steps=scenario.num_inference_steps,
        repeats=pace.repeats,
        float8_layers=count_float8_layers(model),
        build_ms=build_ms,
        first_ms=first_ms,
        text_encode_ms=phases["text_encode"],
        denoise_ms=phases["denoise"],
        step_ms=step_ms,
        decode_ms=phases["decode"],
        total_ms=total,
        spread_percent=100 * (max(totals) - min(totals)) / total,
        images_per_second=scenario.batch * 1e3 / total,
        same_pixels=len({generation.images for _, generation in drawn}) == 1,
        weights_bytes=weights_bytes,
        peak_bytes=_peak_bytes(model.device),
        teraflop_per_s=teraflop * scenario.batch * 1e3 / step_ms if teraflop else None,
        speedup=baseline_ms / phases["denoise"] if baseline_ms else None,
    )


def make_request(spec: ModelSpec, scenario: Scenario) -> GenerationRequest:
    """The model's defaults, at the scenario's size, steps and batch; seeds 0, 1, 2 ..."""
    return GenerationRequest(
        model=spec.name,
        prompt=PROMPT,
        prompt_2=None,
        negative_prompt=None,
        width=scenario.size_px,
        height=scenario.size_px,
        num_inference_steps=scenario.num_inference_steps,
        guidance_scale=spec.defaults.guidance_scale,
        true_cfg_scale=None,
        max_sequence_length=spec.defaults.max_sequence_length,
        scheduler=spec.defaults.scheduler,
        seeds=tuple(range(scenario.batch)),
        truncate_long_prompt=False,
        deterministic=False,
    )


def count_float8_layers(model: LoadedModel) -> int:
    """Layers whose weight really is held in float8."""
    denoiser = getattr(model.pipe, "transformer", None) or model.pipe.unet
    return sum(isinstance(weight, Float8Tensor) for weight in denoiser.parameters())


def _timed_draw(model: LoadedModel, request: GenerationRequest) -> tuple[float, Generation]:
    """Milliseconds from request to pixels in host memory, which waits for the device."""
    started = time.perf_counter()
    generation = draw(model, request, CancelToken())
    return (time.perf_counter() - started) * 1e3, generation


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated_bytes(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _free_memory(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
