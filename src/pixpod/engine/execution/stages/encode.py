"""Encodes what steers an image: texts by text encoders, images by the VAE."""

from collections.abc import Sequence

from pixpod.engine.execution.batch import Batch, ItemState
from pixpod.engine.execution.conditions import Condition
from pixpod.engine.execution.stages.base import StageContext
from pixpod.errors import InvalidInput


class EncodeStage:
    """Computes the conditions of each item that are not cached. `subject` is named in errors."""

    def __init__(self, conditions: Sequence[Condition], subject: str) -> None:
        self._conditions = conditions
        self._subject = subject

    def prepare(self, batch: Batch) -> bool:
        missing = False
        for state in batch.items:
            for condition in self._conditions:
                missing |= not self._find(batch, state, condition)
        return missing

    def run(self, batch: Batch, context: StageContext) -> None:
        def attempt(states: Sequence[ItemState]) -> None:
            for state in states:
                self._compute(batch, state, context)

        pending = [[state] for state in batch.items if state.error is None]
        context.run_within_memory(batch, self._subject, pending, attempt)

    def _find(self, batch: Batch, state: ItemState, condition: Condition) -> bool:
        """Return whether nothing is left to compute: the item has failed or was cached."""
        try:
            state.warnings += condition.check(batch.model, state.item.request)
        except InvalidInput as error:
            state.error = error
            return True
        found = condition.find(batch.model, condition.request_of(state.item.request))
        if found is not None:
            state.arguments[condition.used_by] |= found
        return found is not None

    def _compute(self, batch: Batch, state: ItemState, context: StageContext) -> None:
        for condition in self._conditions:
            request = condition.request_of(state.item.request)
            found = condition.find(batch.model, request)
            if found is None:
                pipe = context.pipe_for(batch, [request])
                found = condition.compute(batch.model, pipe, request)
            state.arguments[condition.used_by] |= found
