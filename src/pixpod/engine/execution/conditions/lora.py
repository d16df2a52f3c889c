"""LoRAs: rows of one batch have other ones, in copies of components that share the weights."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pixpod.engine.adapters.adapter import Adapter
from pixpod.engine.adapters.copies import AdaptedCopies, AdaptedCopy, Stack
from pixpod.engine.adapters.store import AdapterStore
from pixpod.engine.execution.conditions.base import Condition, Prepared
from pixpod.engine.execution.pipelines import Arguments
from pixpod.engine.model import Component, LoadedModel, Pipeline
from pixpod.errors import AdapterUnusable, Problem, WeightsRefused
from pixpod.job import AdapterUse, GenerationRequest, LoraFile
from pixpod.methods import StageName

_Content = tuple[tuple[tuple[str, float], ...], ...]
"""Hashes and scales of the LoRAs of each row."""


class LoraCondition(Condition):
    """The LoRAs of requests.

    Their copy of the denoiser depends on the slots in the batch's key, never on which LoRAs the
    rows have. Text encoders run for one request at a time.
    """

    stage = StageName.ADAPT

    def __init__(self, store: AdapterStore, copies: AdaptedCopies) -> None:
        self._store = store
        self._copies = copies
        self._written: dict[AdaptedCopy, _Content] = {}

    def prepare(self, model: LoadedModel, prepared: Prepared) -> Prepared:
        request = prepared.request
        files, spec = request.conditions.loras, model.spec.family.lora
        if not files:
            return prepared
        assert spec is not None, "the contract refuses LoRAs for other families"
        started = time.perf_counter()
        adapters = [self._store.get(file, model) for file in files]
        rank = max(_rank(adapters, component) for component in model.components)
        if rank > spec.max_rank:
            _refuse_rank(files, rank, spec.max_rank)
        slots = spec.slots_for(
            _rank(adapters, model.spec.family.denoiser),
            is_whole=any(adapter.is_whole for adapter in adapters),
        )
        conditions = replace(request.conditions, slots=slots)
        return Prepared(
            request=replace(request, conditions=conditions),
            adapters=tuple(map(_use, files, adapters)),
            timings_ms={self.stage.value: (time.perf_counter() - started) * 1e3},
        )

    def find(self, model: LoadedModel, request: GenerationRequest) -> Arguments | None:
        return {}

    def compute(self, model: LoadedModel, pipe: Pipeline, request: GenerationRequest) -> Arguments:
        raise AssertionError("LoRAs are no arguments of the pipeline")

    def components(
        self, model: LoadedModel, stage: StageName, requests: Sequence[GenerationRequest]
    ) -> Mapping[str, Component]:
        slots = requests[0].conditions.slots
        if slots is None or stage not in (StageName.TEXT_ENCODE, StageName.DENOISE):
            return {}
        if stage is StageName.TEXT_ENCODE:
            return dict(self._text_encoders(model, requests))
        denoiser = model.spec.family.denoiser
        copy = self._copies.get(model, denoiser, slots, len(requests))
        self._write(copy, model, denoiser, requests)
        return {denoiser: copy.module}

    def warnings(self, component: Component) -> tuple[str, ...]:
        found = (copy.warnings for copy in self._written if copy.module is component)
        return next(found, ())

    def release(self, spare_bytes: int | None) -> None:
        self._written.clear()
        self._copies.release(spare_bytes)

    def free(self) -> bool:
        return self._copies.drop_idle()

    def _text_encoders(
        self, model: LoadedModel, requests: Sequence[GenerationRequest]
    ) -> Iterator[tuple[str, Component]]:
        """Yield copies of the text encoders that the only request has LoRAs for."""
        family = model.spec.family
        (request,) = requests
        adapters = [self._store.get(file, model) for file in request.conditions.loras]
        for encoder in family.text_encoders:
            rank = _rank(adapters, encoder)
            if rank and family.lora:
                slots = family.lora.slots_for(rank, is_whole=True)
                copy = self._copies.get(model, encoder, slots, 1)
                self._write(copy, model, encoder, requests)
                yield encoder, copy.module

    def _write(
        self,
        copy: AdaptedCopy,
        model: LoadedModel,
        component: str,
        requests: Sequence[GenerationRequest],
    ) -> None:
        """Write all slots, unless this batch has written just that."""
        content = tuple(map(content_of, requests))
        if self._written.get(copy) == content:
            return
        self._written.pop(copy, None)
        copy.write([self._stack(model, component, request) for request in requests])
        self._written[copy] = content

    def _stack(self, model: LoadedModel, component: str, request: GenerationRequest) -> Stack:
        return [
            (self._store.get(file, model).of(component), file.scale)
            for file in request.conditions.loras
        ]

    def text_content(
        self, model: LoadedModel, request: GenerationRequest
    ) -> tuple[tuple[str, float], ...]:
        """Return the LoRAs that change a request's embeddings."""
        encoders = model.spec.family.text_encoders
        return tuple(
            (file.sha256, file.scale)
            for file in request.conditions.loras
            if any(self._store.get(file, model).of(encoder) for encoder in encoders)
        )


def content_of(request: GenerationRequest) -> tuple[tuple[str, float], ...]:
    return tuple((file.sha256, file.scale) for file in request.conditions.loras)


def _rank(adapters: Sequence[Adapter], component: str) -> int:
    """Return the rank that the LoRAs of one row have together."""
    return sum(adapter.rank_of(component) for adapter in adapters)


def _use(file: LoraFile, adapter: Adapter) -> AdapterUse:
    return AdapterUse(
        name=file.name,
        sha256=file.sha256,
        rank=adapter.rank,
        layers=adapter.num_layers,
        scale=file.scale,
        cached=file.is_cached,
    )


def _refuse_rank(files: Sequence[LoraFile], rank: int, max_rank: int) -> None:
    if all(file.is_deployed for file in files):
        names = ", ".join(file.name for file in files)
        raise AdapterUnusable(f"LoRAs {names}: expected a rank of {max_rank} together, got {rank}")
    accepted = f"LoRAs whose ranks are at most {max_rank} together"
    raise WeightsRefused([Problem(field="loras", value=rank, accepted=accepted)])
