"""A batch on its way through the stages, and the rows that it consists of."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from pixpod.engine.base import OnStep
from pixpod.engine.execution.pipelines import Arguments, PipelineCalls, calls_of
from pixpod.engine.model import LoadedModel
from pixpod.engine.scheduling.batching import BatchItem, ItemResult, bucket
from pixpod.errors import WorkerError
from pixpod.job import GenerationRequest, ImageResult, RawImage
from pixpod.methods import Method, StageName, method_of
from pixpod.timeline import Timeline


@dataclass(slots=True, kw_only=True, eq=False)
class ItemState:
    """One request's rows of a batch.

    `arguments` are its conditions, ready for the pipeline's call of a stage.
    """

    item: BatchItem
    arguments: defaultdict[StageName, Arguments] = field(default_factory=lambda: defaultdict(dict))
    warnings: list[str] = field(default_factory=list)
    error: WorkerError | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One image of a batch: a tensor's first dimension is 1. `image` is the result or its error.

    `num_calls` counts the denoiser calls that have made `latents`, and `generator` is as they have
    left it.
    """

    state: ItemState
    seed: int
    latents: torch.Tensor | None = None
    num_calls: int = 0
    generator: torch.Generator | None = None
    image: RawImage | WorkerError | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Requests with the same batch key, which go through the pipeline together.

    Stages fill it. An item whose `error` is set fails alone.
    """

    model: LoadedModel
    items: Sequence[ItemState]
    all_rows: Sequence[Row]
    calls: PipelineCalls
    method: Method
    on_step: OnStep
    timeline: Timeline = field(default_factory=Timeline)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: LoadedModel, items: Sequence[BatchItem], on_step: OnStep) -> "Batch":
        states = [ItemState(item=item) for item in items]
        return cls(
            model=model,
            items=states,
            all_rows=[Row(state=state, seed=seed) for state in states for seed in state.item.seeds],
            calls=calls_of(model.spec.family),
            method=method_of(model.spec, items[0].request),
            on_step=on_step,
        )

    @property
    def request(self) -> GenerationRequest:
        """The first request; only what the batch key holds may be read from it."""
        return self.items[0].item.request

    @property
    def num_calls(self) -> int:
        """Return the denoiser calls that all rows together have had."""
        return sum(row.num_calls for row in self.rows)

    @property
    def rows(self) -> list[Row]:
        """Rows of items that have not failed."""
        return [row for row in self.all_rows if row.state.error is None]

    def buckets(self) -> list[Sequence[Row]]:
        """Split the rows into sizes that are compiled: a failed item leaves an odd number."""
        rows: Sequence[Row] = self.rows
        chunks = []
        while rows:
            size = bucket(len(rows))
            chunks.append(rows[:size])
            rows = rows[size:]
        return chunks

    def results(self) -> list[ItemResult | WorkerError]:
        """Return for each item its images and its share of the time, or its error."""
        left = iter(self.rows)
        num_rows = len(self.rows)
        spent_ms = self.timeline.milliseconds()
        return [self._result(state, left, num_rows, spent_ms) for state in self.items]

    def _result(
        self, state: ItemState, left: Iterator[Row], num_rows: int, spent_ms: dict[str, float]
    ) -> ItemResult | WorkerError:
        if state.error is not None:
            return state.error
        rows = list(islice(left, len(state.item.seeds)))
        images = []
        for row in rows:
            if isinstance(row.image, WorkerError):
                return row.image
            assert row.image is not None, "the last stage gives each row an image"
            images.append(ImageResult(pixels=row.image, seed=row.seed))
        return ItemResult(
            images=tuple(images),
            timings_ms=dict(spent_ms),
            controls=tuple(each.raw for each in state.item.request.conditions.controls),
            device_ms=sum(spent_ms.values()) * len(rows) / num_rows,
            warnings=(*self.model.warnings, *state.warnings, *dict.fromkeys(self.warnings)),
        )
