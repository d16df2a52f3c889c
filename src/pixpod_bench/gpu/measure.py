"""One scenario to one row: draws what a subject was built for, keeps the medians."""

import statistics
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch._dynamo.utils import counters
from torchao.utils import TorchAOBaseTensor

from pixpod.catalog import ModelSpec
from pixpod.engine.device import name_device
from pixpod.engine.loading.components import Component
from pixpod.engine.loading.pipelines import LoadedModel
from pixpod.job import GenerationRequest
from pixpod_bench.asking import make_request
from pixpod_bench.card_memory import allocated_bytes, peak_bytes, reset_peak
from pixpod_bench.drawing_times import Drawing, synchronize
from pixpod_bench.figures import percentile, spread_percent
from pixpod_bench.floors import find_peak, step_work
from pixpod_bench.results import Row, VaeRow
from pixpod_bench.scenarios import Scenario, VaeScenario


class Subject(Protocol):
    """A model on the device and somebody's way to draw with it."""

    @property
    def model(self) -> LoadedModel: ...

    def draw(self, request: GenerationRequest) -> Drawing: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often each scenario is drawn; none is begun after `deadline` (perf_counter)."""

    warmups: int
    repeats: int
    deadline: float | None

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and time.perf_counter() > self.deadline


def measure_drawing(subject: Subject, scenario: Scenario, pace: Pace, build_ms: float) -> Row:
    model = subject.model
    request = request_for(model.spec, scenario)
    weights_bytes = allocated_bytes(model.device)
    graphs_before = count_graphs()
    first_ms = subject.draw(request).total_ms
    for _ in range(pace.warmups - 1):
        subject.draw(request)
    graphs = count_graphs()
    reset_peak(model.device)
    drawn = [subject.draw(request) for _ in range(pace.repeats)]
    totals = [drawing.total_ms for drawing in drawn]
    denoise_ms = statistics.median(drawing.denoise_ms for drawing in drawn)
    step_ms = denoise_ms / scenario.num_inference_steps
    variant = scenario.variant
    rows = scenario.batch * (2 if scenario.text_tokens is None and scenario.has_guidance else 1)
    work = step_work(variant.model, scenario.size_px, scenario.text_tokens, rows)
    peak = find_peak(name_device(model.device))
    floor_ms = peak.step_ms(work, variant.precision) if peak and work else None
    return Row(
        side=variant.side,
        model=variant.model,
        precision=variant.precision,
        mode=variant.mode,
        attention=variant.attention,
        recipe=variant.recipe,
        size_px=scenario.size_px,
        batch=scenario.batch,
        num_inference_steps=scenario.num_inference_steps,
        text_tokens=scenario.text_tokens,
        has_guidance=scenario.has_guidance,
        repeats=pace.repeats,
        float8_layers=count_quantized_layers(model),
        build_ms=build_ms,
        first_ms=first_ms,
        text_encode_ms=statistics.median(drawing.text_encode_ms for drawing in drawn),
        denoise_ms=denoise_ms,
        step_ms=step_ms,
        decode_ms=statistics.median(drawing.decode_ms for drawing in drawn),
        total_ms=statistics.median(totals),
        p95_ms=percentile(totals, 95),
        spread_percent=spread_percent(totals),
        images_per_second=scenario.batch * 1e3 / statistics.median(totals),
        same_pixels=len({drawing.pixels for drawing in drawn}) == 1,
        graphs=graphs - graphs_before,
        late_graphs=count_graphs() - graphs,
        weights_bytes=weights_bytes,
        peak_bytes=peak_bytes(model.device),
        teraflop_per_s=work.total * 1e3 / step_ms if work and model.device.type == "cuda" else None,
        floor_percent=100 * floor_ms / step_ms if floor_ms else None,
        warnings=drawn[-1].warnings,
    )


def request_for(spec: ModelSpec, scenario: Scenario) -> GenerationRequest:
    """The whole batch as one request, of seeds from 0 on."""
    return make_request(
        spec,
        size_px=scenario.size_px,
        num_inference_steps=scenario.num_inference_steps,
        seeds=tuple(range(scenario.batch)),
        text_tokens=scenario.text_tokens,
        has_guidance=scenario.has_guidance,
    )


@torch.inference_mode()
def measure_vae(scenario: VaeScenario, vae: Component, pace: Pace) -> VaeRow:
    """All images at once."""
    latents = random_latents(vae, scenario.size_px, scenario.batch)
    if scenario.channels_last:
        latents = latents.to(memory_format=torch.channels_last)

    def decode() -> float:
        started = time.perf_counter()
        vae.decode(latents, return_dict=False)
        synchronize(latents.device)
        return (time.perf_counter() - started) * 1e3

    first_ms = decode()
    for _ in range(pace.warmups - 1):
        decode()
    reset_peak(latents.device)
    times = [decode() for _ in range(pace.repeats)]
    return VaeRow(
        model=scenario.model,
        precision=scenario.precision,
        channels_last=scenario.channels_last,
        compiled=scenario.compiled,
        size_px=scenario.size_px,
        batch=scenario.batch,
        repeats=pace.repeats,
        first_ms=first_ms,
        decode_ms=statistics.median(times),
        spread_percent=spread_percent(times),
        peak_bytes=peak_bytes(latents.device),
    )


def random_latents(vae: Component, size_px: int, batch: int) -> torch.Tensor:
    """N(0, 1), as they come from a denoiser, (batch, channels, size_px / 8, size_px / 8)."""
    parameter = next(vae.parameters())
    side, channels = size_px // 8, vae.config.latent_channels
    return torch.randn(batch, channels, side, side, device=parameter.device).to(parameter.dtype)


def count_graphs() -> int:
    """Graphs that torch has compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])


def count_quantized_layers(model: LoadedModel) -> int:
    """Layers of the denoiser whose weight really is held in 8 bits."""
    denoiser = getattr(model.pipe, model.spec.family.denoiser)
    return sum(isinstance(weight, TorchAOBaseTensor) for weight in denoiser.parameters())
