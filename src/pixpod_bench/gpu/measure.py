"""Measures one scenario on a subject, and keeps the medians as one row."""

import statistics
from typing import Protocol

from torchao.utils import TorchAOBaseTensor

from pixpod.engine.device import name_device
from pixpod.engine.model import LoadedModel
from pixpod.job import GenerationRequest
from pixpod.testing.runners import TimedImages, count_graphs
from pixpod.testing.sample_requests import make_request
from pixpod_bench.figures import percentile, spread_percent
from pixpod_bench.gpu.floors import find_peak, step_work
from pixpod_bench.gpu.memory import allocated_bytes, peak_bytes, reset_peak
from pixpod_bench.gpu.results import Row
from pixpod_bench.gpu.scenarios import Scenario


class Subject(Protocol):
    """A model on the device and a way to generate with it: pixpod's or diffusers'."""

    @property
    def model(self) -> LoadedModel: ...

    def generate(self, request: GenerationRequest) -> TimedImages: ...


def measure_images(
    subject: Subject, scenario: Scenario, *, warmups: int, repeats: int, build_ms: float
) -> Row:
    """Generate the whole batch as one request, with seeds from 0 on."""
    model, variant = subject.model, scenario.variant
    request = make_request(
        model.spec,
        size_px=scenario.size_px,
        num_inference_steps=scenario.num_inference_steps,
        seeds=tuple(range(scenario.batch_size)),
        text_tokens=scenario.text_tokens,
        has_guidance=scenario.has_guidance,
    )
    weights_bytes = allocated_bytes(model.device)
    graphs_before = count_graphs()
    first_ms = subject.generate(request).total_ms
    for _ in range(warmups - 1):
        subject.generate(request)
    graphs = count_graphs()
    reset_peak(model.device)
    results = [subject.generate(request) for _ in range(repeats)]
    totals = [result.total_ms for result in results]
    denoise_ms = statistics.median(result.denoise_ms for result in results)
    step_ms = denoise_ms / scenario.num_inference_steps
    is_doubled = scenario.text_tokens is None and scenario.has_guidance
    samples = scenario.batch_size * (2 if is_doubled else 1)
    work = step_work(variant.model, scenario.size_px, scenario.text_tokens, samples)
    peak = find_peak(name_device(model.device))
    floor_ms = peak.step_ms(work, variant.precision) if peak and work else None
    return Row(
        side=variant.side,
        model=variant.model,
        precision=variant.precision,
        mode=variant.mode,
        size_px=scenario.size_px,
        batch_size=scenario.batch_size,
        num_inference_steps=scenario.num_inference_steps,
        text_tokens=scenario.text_tokens,
        has_guidance=scenario.has_guidance,
        repeats=repeats,
        float8_layers=_count_quantized_layers(model),
        build_ms=build_ms,
        first_ms=first_ms,
        text_encode_ms=statistics.median(result.text_encode_ms for result in results),
        denoise_ms=denoise_ms,
        step_ms=step_ms,
        decode_ms=statistics.median(result.decode_ms for result in results),
        total_ms=statistics.median(totals),
        p95_ms=percentile(totals, 95),
        spread_percent=spread_percent(totals),
        images_per_second=scenario.batch_size * 1e3 / statistics.median(totals),
        same_pixels=len({result.pixels for result in results}) == 1,
        graphs=graphs - graphs_before,
        late_graphs=count_graphs() - graphs,
        weights_bytes=weights_bytes,
        peak_bytes=peak_bytes(model.device),
        teraflop_per_s=work.total * 1e3 / step_ms if work and model.device.type == "cuda" else None,
        floor_percent=100 * floor_ms / step_ms if floor_ms else None,
        warnings=results[-1].warnings,
    )


def _count_quantized_layers(model: LoadedModel) -> int:
    """Return how many layers of the denoiser really hold their weight in 8 bits."""
    weights = model.denoiser.parameters()
    return sum(isinstance(weight, TorchAOBaseTensor) for weight in weights)
