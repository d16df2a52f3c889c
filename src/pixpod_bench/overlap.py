"""Batches in a row: each is decoded before the next one is denoised, as a worker does it, or
beside it, on a thread and a stream of its own.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from pixpod.engine.execution.family_calls import RULES, Arguments, stack_rows
from pixpod.engine.loading.pipelines import LoadedModel
from pixpod.engine.streams import synchronize_stream
from pixpod_bench.measure import Pace, random_latents, request_for
from pixpod_bench.results import OverlapRow
from pixpod_bench.scenarios import OverlapScenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Medians, milliseconds for each batch. `decode_ms` is of one decoding with nothing beside."""

    decode_ms: float
    in_turns_ms: float
    beside_ms: float


def measure_overlap(scenario: OverlapScenario, model: LoadedModel, pace: Pace) -> OverlapRow:
    """The text is encoded once; what is decoded are latents N(0, 1), at the same cost."""
    drawing, variant = scenario.drawing, scenario.drawing.variant
    stages = _Stages(scenario, model)
    found = compare(stages.denoise, stages.decode, scenario.num_batches, pace)
    return OverlapRow(
        model=variant.model,
        precision=variant.precision,
        mode=variant.mode,
        size_px=drawing.size_px,
        batch=drawing.batch,
        num_inference_steps=drawing.num_inference_steps,
        num_batches=scenario.num_batches,
        repeats=pace.repeats,
        decode_ms=found.decode_ms,
        in_turns_ms=found.in_turns_ms,
        beside_ms=found.beside_ms,
        gain=found.in_turns_ms / found.beside_ms,
    )


def compare(
    denoise: Callable[[], None], decode: Callable[[], None], num_batches: int, pace: Pace
) -> Comparison:
    """Both ways in turns, so that both meet the same device; each call returns when it is done."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:

        def in_turns() -> None:
            for _ in range(num_batches):
                denoise()
                decode()

        def beside() -> None:
            decodings = []
            for _ in range(num_batches):
                denoise()
                decodings.append(decoder.submit(decode))
            for decoding in decodings:
                decoding.result()

        ways = (decode, in_turns, beside)
        for _ in range(pace.warmups):
            for way in ways:
                way()
        rounds = [[_milliseconds(way) for way in ways] for _ in range(pace.repeats)]
    decode_ms, in_turns_ms, beside_ms = map(statistics.median, zip(*rounds, strict=True))
    return Comparison(
        decode_ms=decode_ms,
        in_turns_ms=in_turns_ms / num_batches,
        beside_ms=beside_ms / num_batches,
    )


class _Stages:
    """The two halves of drawing one batch. Each waits for its own stream, not for the device."""

    def __init__(self, scenario: OverlapScenario, model: LoadedModel) -> None:
        drawing = scenario.drawing
        request = request_for(model.spec, drawing)
        rules = RULES[model.spec.family]
        self._model = model
        self._seeds = request.seeds
        with torch.inference_mode():
            text = rules.encode_text(model.pipe, request)
        self._arguments: Arguments = {
            **stack_rows([text] * drawing.batch),
            **rules.call_arguments(request),
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            "output_type": "latent",
        }
        self._latents = random_latents(model.pipe.vae, drawing.size_px, drawing.batch)
        is_cuda = model.device.type == "cuda"
        # torch has no types for streams
        self._stream = torch.cuda.Stream(model.device) if is_cuda else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def denoise(self) -> None:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in self._seeds]
        self._model.pipe(**self._arguments, generator=generators)
        synchronize_stream(self._model.device)

    @torch.inference_mode()
    def decode(self) -> None:
        """To values in host memory."""
        with torch.cuda.stream(self._stream):
            (images,) = self._model.pipe.vae.decode(self._latents, return_dict=False)
            ((images.float() + 1) * 127.5).to(torch.uint8).cpu()


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
