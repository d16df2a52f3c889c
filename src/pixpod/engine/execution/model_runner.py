"""One batch through a loaded pipeline: check texts, encode them, denoise, decode to pixels."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import diffusers
import torch

from pixpod.engine.compilation.cuda_graphs import stop_recording
from pixpod.engine.device import free_memory
from pixpod.engine.execution.family_calls import RULES, Arguments, count_tokens, stack_rows
from pixpod.engine.execution.oom_fallbacks import (
    Attempt,
    DoesNotFit,
    Ladder,
    Rung,
    draw_within_memory,
)
from pixpod.engine.execution.prompt_cache import PromptCache
from pixpod.engine.execution.step_cache import step_caching
from pixpod.engine.loading.pipelines import LoadedModel, Pipeline
from pixpod.engine.memory.placement import Placement
from pixpod.engine.scheduling.batching import bucket
from pixpod.engine.scheduling.request_queue import Drawn, OnStep, Part
from pixpod.engine.streams import Pace, synchronize_stream
from pixpod.errors import InvalidInput, NumericalFault, OutOfMemory, Problem, WorkerError
from pixpod.job import GenerationRequest, RawImage
from pixpod.timeline import Timeline

_Asked = TypeVar("_Asked")
_Made = TypeVar("_Made")

_Row = tuple[Arguments, int]
"""A text's embeddings, and a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A part whose text has been encoded."""

    arguments: Arguments
    warnings: tuple[str, ...]
    encode_ms: float


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Rows that go through the pipeline at once, and how long that takes."""

    model: LoadedModel
    request: GenerationRequest
    on_step: OnStep
    timeline: Timeline = field(default_factory=Timeline)
    warnings: list[str] = field(default_factory=list)


class Drawer:
    """Draws batches on one device; all calls come from the device's thread."""

    def __init__(self, placement: Placement, prompts: PromptCache) -> None:
        self._placement = placement
        self._prompts = prompts

    def draw(
        self, model: LoadedModel, parts: Sequence[Part], on_step: OnStep
    ) -> list[Drawn | WorkerError]:
        """What became of each part; requests that may share a batch (`batching.GroupKey`).

        A part fails alone if its text is too long or its images are none. Raises OutOfMemory if
        the device cannot hold even one row, and what `on_step` raises.
        """
        batch = _Batch(model=model, request=parts[0].request, on_step=on_step)
        with torch.inference_mode(), self._everything_may_go_afterwards():
            texts = [self._encode(batch, part.request) for part in parts]
            rows = [
                (text.arguments, seed)
                for part, text in zip(parts, texts, strict=True)
                if isinstance(text, _Text)
                for seed in part.seeds
            ]
            images, warnings = self._draw_rows(batch, rows) if rows else ([], ())
        left = iter(images)
        return [
            _share(batch, part, text, left, len(rows), warnings)
            if isinstance(text, _Text)
            else text
            for part, text in zip(parts, texts, strict=True)
        ]

    @contextmanager
    def _everything_may_go_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._placement.done()

    def _encode(self, batch: _Batch, request: GenerationRequest) -> _Text | WorkerError:
        model, started = batch.model, time.perf_counter()
        try:
            warnings = _check_length(model, request)
        except InvalidInput as error:
            return error
        swap_ms = 0.0

        def encode() -> Arguments:
            nonlocal swap_ms
            swap_ms = self._placement.using(model, model.spec.family.text_encoders)
            return RULES[model.spec.family].encode_text(model.pipe, request)

        key = self._prompts.key(model, request)

        def attempt(_: object) -> list[Arguments] | None:
            try:
                return [self._prompts.get_or_encode(key, encode, model.device)]
            except torch.OutOfMemoryError:
                return None

        (arguments,), _ = self._within_memory(model, "a text", [[request]], attempt)
        synchronize_stream(model.device)
        batch.timeline.add("swap", swap_ms)
        encode_ms = (time.perf_counter() - started) * 1e3 - swap_ms
        return _Text(arguments=arguments, warnings=tuple(warnings), encode_ms=encode_ms)

    def _draw_rows(
        self, batch: _Batch, rows: Sequence[_Row]
    ) -> tuple[list[RawImage | WorkerError], tuple[str, ...]]:
        model, request = batch.model, batch.request
        size, drawn_with = (request.width, request.height), (model.spec.family.denoiser, "vae")
        batch.timeline.add("swap", self._placement.using(model, drawn_with, size, len(rows)))
        scheduler_class = getattr(diffusers, request.scheduler)
        model.pipe.scheduler = scheduler_class.from_config(model.scheduler_config)

        def attempt(some: Sequence[_Row]) -> list[RawImage | WorkerError] | None:
            try:
                return _call_pipeline(batch, some)
            except torch.OutOfMemoryError:
                return None

        what = f"an image of {request.width}x{request.height}"
        with _thrifty_decoder(model.pipe) as thrift:
            images, warnings = self._within_memory(model, what, _in_buckets(rows), attempt, thrift)
        return images, (*warnings, *batch.warnings)

    def _within_memory(
        self,
        model: LoadedModel,
        what: str,
        batches: Sequence[Sequence[_Asked]],
        attempt: Attempt[_Asked, _Made],
        *thrift: Rung,
    ) -> tuple[list[_Made], tuple[str, ...]]:
        ladder = Ladder(
            first=(Rung(climb=_free_cache), *thrift),
            last=(Rung(climb=lambda: self._placement.park_others(model)),),
        )
        try:
            return draw_within_memory(batches, attempt, ladder)
        except DoesNotFit as exc:
            raise OutOfMemory(f"{model.spec.name}: no memory for {what} on {model.device}") from exc


def _in_buckets(rows: Sequence[_Row]) -> list[Sequence[_Row]]:
    """Rows are a bucket unless a part was refused; no other number is compiled."""
    batches = []
    while rows:
        size = bucket(len(rows))
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


def _call_pipeline(batch: _Batch, rows: Sequence[_Row]) -> list[RawImage | WorkerError]:
    model, request = batch.model, batch.request
    steps = _StepWatch(model.device, batch.on_step)
    started = time.perf_counter()
    num_steps = request.num_inference_steps
    with step_caching(model.pipe, request.quality, num_steps) as skipped:
        decoded = model.pipe(
            **stack_rows([arguments for arguments, _ in rows]),
            **RULES[model.spec.family].call_arguments(request),
            width=request.width,
            height=request.height,
            num_inference_steps=num_steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
            output_type="pt",
            callback_on_step_end=steps,
        ).images
    if skipped.num_calls:
        batch.warnings.append(f"turbo: {skipped.num_calls} calls of the denoiser were left out")
    images = _to_images(decoded, model.spec.name)
    batch.timeline.add("denoise", (steps.last_step_at - started) * 1e3)
    batch.timeline.add("decode", (time.perf_counter() - steps.last_step_at) * 1e3)
    return images


def _share(
    batch: _Batch,
    part: Part,
    text: _Text,
    images: Iterator[RawImage | WorkerError],
    num_rows: int,
    warnings: tuple[str, ...],
) -> Drawn | WorkerError:
    """A part's images, taken from those of the whole batch, and its share of the time."""
    own = list(islice(images, len(part.seeds)))
    assert len(own) == len(part.seeds), "a pipeline draws one image for each row"
    for image in own:
        if isinstance(image, WorkerError):
            return image
    shared_ms = batch.timeline.milliseconds()
    return Drawn(
        images=tuple(image for image in own if isinstance(image, RawImage)),
        timings_ms={**shared_ms, "text_encode": round(text.encode_ms, 1)},
        device_ms=text.encode_ms + sum(shared_ms.values()) * len(part.seeds) / num_rows,
        warnings=(*batch.model.warnings, *text.warnings, *warnings),
    )


class _StepWatch:
    """Called by the pipeline after each step: passes it on, stamps the last one."""

    def __init__(self, device: torch.device, on_step: OnStep) -> None:
        self._device = device
        self._pace = Pace(device)
        self._on_step = on_step
        self.last_step_at = time.perf_counter()

    def __call__(
        self, pipe: Pipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._pace.step()
        self._on_step(step + 1)
        if step == pipe.num_timesteps - 1:
            synchronize_stream(self._device)
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


def _to_images(decoded: torch.Tensor, model_name: str) -> list[RawImage | WorkerError]:
    """Values 0 ... 1 of (rows, 3, height, width) to 8-bit RGB; a row with NaN fails alone."""
    is_finite = torch.isfinite(decoded).flatten(1).all(dim=1).tolist()
    levels = (decoded.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
    height, width = levels.shape[1:3]
    return [
        RawImage(width=width, height=height, pixels=row.numpy().tobytes())
        if is_good
        else NumericalFault(f"{model_name} produced NaN or infinite pixels")
        for row, is_good in zip(levels, is_finite, strict=True)
    ]


def _free_cache() -> bool:
    stop_recording()
    free_memory()
    return True


@contextmanager
def _thrifty_decoder(pipe: Pipeline) -> Iterator[Rung]:
    """A rung after which images are decoded one by one and large ones in tiles; ends with the
    batch, so that the next one is decoded as ever.
    """

    def climb() -> bool:
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()
        return True

    try:
        yield Rung(
            climb=climb, warning="the device's memory was short: large images were decoded in tiles"
        )
    finally:
        pipe.vae.disable_slicing()
        pipe.vae.disable_tiling()
