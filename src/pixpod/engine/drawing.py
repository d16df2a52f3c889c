"""One request through a loaded pipeline: check its text, encode it, denoise, decode to pixels."""

import time
from typing import Any

import diffusers
import torch

from pixpod.engine.base import CancelToken
from pixpod.engine.families import RULES, Arguments, count_tokens, repeat_rows
from pixpod.engine.loading import LoadedModel, Pipeline
from pixpod.errors import InvalidInput, NumericalFault, OutOfMemory, Problem
from pixpod.job import Generation, GenerationRequest, RawImage
from pixpod.timeline import Timeline


def draw(model: LoadedModel, request: GenerationRequest, cancel: CancelToken) -> Generation:
    """One image per seed, as one batch; `deterministic` gives each a batch of its own.

    Raises InvalidInput for too long a prompt, OutOfMemory, NumericalFault, and Cancelled at the
    first step after the token was cancelled.
    """
    warnings = _check_length(model, request)
    timeline = Timeline()
    scheduler_class = getattr(diffusers, request.scheduler)
    model.pipe.scheduler = scheduler_class.from_config(model.scheduler_config)
    batches = [(seed,) for seed in request.seeds] if request.deterministic else [request.seeds]
    images: list[RawImage] = []
    try:
        with torch.inference_mode():
            with timeline.phase("text_encode"):
                text = RULES[model.spec.family].encode_text(model.pipe, request)
                _synchronize(model.device)
            for seeds in batches:
                cancel.raise_if_cancelled()
                images += _draw_batch(model, request, text, seeds, cancel, timeline)
    except torch.OutOfMemoryError as exc:
        size = f"{len(batches[0])} images of {request.width}x{request.height}"
        raise OutOfMemory(f"{model.spec.name}: no memory for {size} on {model.device}") from exc
    return Generation(
        images=tuple(images),
        model=model.identity,
        timings_ms=timeline.milliseconds(),
        warnings=(*model.warnings, *warnings),
    )


def _draw_batch(
    model: LoadedModel,
    request: GenerationRequest,
    text: Arguments,
    seeds: tuple[int, ...],
    cancel: CancelToken,
    timeline: Timeline,
) -> list[RawImage]:
    steps = _StepWatch(model.device, cancel)
    started = time.perf_counter()
    decoded = model.pipe(
        **repeat_rows(text, len(seeds)),
        **RULES[model.spec.family].call_arguments(request),
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
        callback_on_step_end=steps,
    ).images
    images = _to_images(decoded, model.spec.name)
    timeline.add("denoise", (steps.last_step_at - started) * 1e3)
    timeline.add("decode", (time.perf_counter() - steps.last_step_at) * 1e3)
    return images


class _StepWatch:
    """Called by the pipeline after each step: stops a cancelled one, stamps the last one."""

    def __init__(self, device: torch.device, cancel: CancelToken) -> None:
        self._device = device
        self._cancel = cancel
        self.last_step_at = time.perf_counter()

    def __call__(
        self, pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._cancel.raise_if_cancelled()
        if step == pipe.num_timesteps - 1:
            _synchronize(self._device)
            self.last_step_at = time.perf_counter()
        return tensors


def _check_length(model: LoadedModel, request: GenerationRequest) -> list[str]:
    """Warnings for what is cut. Raises InvalidInput if the request does not allow that.

    Encoders with the same tokenizer find the same; it is told once.
    """
    problems, warnings = [], []
    for limit in RULES[model.spec.family].token_limits(model.pipe, request):
        found = count_tokens(limit)
        if found <= limit.limit:
            continue
        if request.truncate_long_prompt or not limit.is_hard:
            warnings.append(
                f"{limit.field}: only {limit.limit} of its {found} tokens are read"
                + ("" if limit.is_hard else " by CLIP; T5 reads it as well")
            )
            continue
        problems.append(
            Problem(
                field=limit.field,
                value=f"{found} tokens",
                accepted=f"at most {limit.limit} tokens",
                hint="shorten it, or set on_long_prompt to truncate",
            )
        )
    if problems:
        raise InvalidInput(list(dict.fromkeys(problems)))
    return list(dict.fromkeys(warnings))


def _to_images(decoded: torch.Tensor, model_name: str) -> list[RawImage]:
    """Values 0 ... 1 of (rows, 3, height, width) to 8-bit RGB."""
    if not torch.isfinite(decoded).all():
        raise NumericalFault(f"{model_name} produced NaN or infinite pixels")
    levels = (decoded.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
    height, width = levels.shape[1:3]
    return [RawImage(width=width, height=height, pixels=row.numpy().tobytes()) for row in levels]


def _synchronize(device: torch.device) -> None:
    """Wait for the device, so that a time stamp means what it says."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
